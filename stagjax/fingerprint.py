"""Checksums that say whether two pytrees of arrays, or two pieces of plain data, are the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PIECE_WORDS = 2**20


def fingerprint(tree: Any) -> dict[str, int]:
    """Return a checksum for each leaf, keyed by its path ("params/embedding"), computed where the arrays are.

    It is the sum of word i times 2i+1, modulo 2**32, over the leaf's elements as 32-bit words in logical order. So it
    depends neither on the sharding nor on the order of summation, and as odd numbers are invertible, any change of
    one word changes it.

    Args:
      tree: pytree of arrays or scalars of up to 64 bits.
    """
    named = leaves(tree)
    if not named:
        return {}
    return {name: int(value) for name, value in zip(named, np.asarray(_word_sums([*named.values()])), strict=True)}


def checksum(array: np.ndarray) -> int:
    """Return what `fingerprint` returns of an array, computed in the memory of this machine, a piece at a time."""
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view(f"u{min(flat.itemsize, 4)}")
    total = 0
    for start in range(0, words.size, _PIECE_WORDS):
        piece = words[start : start + _PIECE_WORDS].astype(np.uint32)
        odd = (2 * np.arange(start, start + piece.size) + 1).astype(np.uint32)
        total += int(np.sum(piece * odd, dtype=np.uint32))
    return total % 2**32


def describe(tree: Any) -> dict[str, str]:
    """Return the type and shape of each leaf, e.g. "float32[2,3]", keyed by its path.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`.
    """
    return {name: f"{x.dtype.name}[{','.join(map(str, x.shape))}]" for name, x in leaves(tree).items()}


def leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree, keyed by their paths ("params/embedding")."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def digest(tree: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of plain data, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@jax.jit
def _word_sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_word_sum(jnp.asarray(array)) for array in arrays])


def _word_sum(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == jnp.bool:
        words = leaf.astype(jnp.uint32)
    elif leaf.dtype.itemsize < 4:
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    else:
        # 64-bit elements become two words, in a new last axis.
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        # One iota an axis instead of a reshaped arange, which the partitioner would have to gather.
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
