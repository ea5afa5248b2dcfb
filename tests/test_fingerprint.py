import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.fingerprint import checksum, digest, fingerprint


def test_fingerprint_is_what_it_says():
    words = np.arange(7, 19, dtype=np.uint32).reshape(3, 4) * np.uint32(3_000_000_019)
    weights = 2 * np.arange(12, dtype=np.uint64).reshape(3, 4) + 1
    want = int((words.astype(np.uint64) * weights % 2**32).sum() % 2**32)
    tree = {"params": {"a": jnp.asarray(words)}, "b": [jnp.asarray(words.view(np.float32)), jnp.uint32(5)]}
    assert fingerprint(tree) == {"params/a": want, "b/0": want, "b/1": 5}
    assert fingerprint({}) == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8", "bool", "float64", "int64"])
def test_any_changed_element_changes_the_fingerprint(dtype):
    with jax.enable_x64(True):
        values = np.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), dtype=jnp.dtype(dtype))
        base = fingerprint({"x": jnp.asarray(values)})
        assert fingerprint({"x": jnp.asarray(values.copy())}) == base
        assert {"x": checksum(values)} == {"x": checksum(np.asfortranarray(values))} == base
        for index in np.ndindex(values.shape):
            changed = values.copy()
            changed[index] = 1 - changed[index]
            assert fingerprint({"x": jnp.asarray(changed)}) != base
        assert fingerprint({"x": jnp.asarray(values[::-1])}) != base
        assert fingerprint({"x": jnp.zeros((0, 3), dtype), "y": jnp.ones((), dtype)})["x"] == 0


def test_a_large_arrays_checksum_is_made_of_pieces(monkeypatch):
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    monkeypatch.setattr("stagjax.fingerprint._PIECE_WORDS", 8)
    assert checksum(values) == fingerprint({"x": values})["x"]
    assert checksum(values[0, 0]) == fingerprint({"x": values[0, 0]})["x"]


def test_digest_depends_on_values_and_not_on_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
