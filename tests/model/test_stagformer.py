"""What must always hold of the forward pass: causality, staggering, packing, and the limits that are the baseline."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.model import stagformer
from stagjax.model.attention import shift_memory
from stagjax.model.layers import Rotary
from tests.variants import VARIANTS, every_combination, params_of, tiny, tokens_of

T = 12


@functools.partial(jax.jit, static_argnames=("config", "remat", "scan_layers"))
def _logits_of(config, params, tokens_BT, positions_BT, segment_ids_BT, **options):
    outputs = stagformer.forward(config, params, tokens_BT, positions_BT, segment_ids_BT, **options)
    return stagformer.logits(params, stagformer.readout(config, params, outputs.stacks))


def logits_of(config, params, tokens_BT, positions_BT=None, segment_ids_BT=None, **options):
    """Return logits; by default each row is one document. Equal shapes share one compiled program."""
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones_like(tokens_BT)
    return _logits_of(config, params, tokens_BT, positions_BT, segment_ids_BT, **options)


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"cross_window": 3}, {"cross_window": 1}, {"cross_attention": "parallel"}])
def test_a_stack_sees_the_one_before_at_positions_up_to_lag_earlier_and_no_later(lag, changes):
    config = tiny(lag=lag, **changes)
    params = params_of(config)
    tokens_BT = tokens_of(config, 1, T)
    positions_BT = jnp.arange(T)[None]
    segments_BT = jnp.ones((1, T), jnp.int32)
    x_BTD = stagformer.embed(config, params, tokens_BT, positions_BT)
    rotary = Rotary(config, positions_BT, x_BTD.dtype)
    attends = stagformer.row_attends(config, segments_BT)

    def second_stack(previous_TD):
        memory_BTD = shift_memory(previous_TD[None], lag, segments_BT)
        out_BTD, _ = stagformer.run_stack(
            config, x_BTD, rotary, *attends, *stagformer.stack_params(config, params, 1), memory_BTD
        )
        return out_BTD[0]

    previous_TD = jax.random.normal(jax.random.key(5), (T, config.model_dim))
    influence_ij = np.abs(np.asarray(jax.jit(jax.jacrev(second_stack))(previous_TD))).max(axis=(1, 3))
    i, j = np.indices((T, T))
    assert (influence_ij[j > i - lag] == 0).all()
    assert (influence_ij[j == i - lag] > 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_depend_on_no_later_token(name):
    config = VARIANTS[name]
    params = params_of(config)
    tokens_BT = tokens_of(config, 1, T)
    changed_BT = tokens_BT.at[0, 7].add(1) % config.vocab_size
    before, after = logits_of(config, params, tokens_BT)[0], logits_of(config, params, changed_BT)[0]
    assert (before[:7] == after[:7]).all()
    assert (before[7:] != after[7:]).any(axis=-1).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_packed_row_gives_each_document_what_it_gets_alone(name):
    config = VARIANTS[name]
    params = params_of(config)
    lengths = (5, 1, 6)
    tokens_BT = tokens_of(config, 1, T)
    positions_BT = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    segments_BT = jnp.concatenate([jnp.full(n, s) for s, n in enumerate(lengths)])[None]
    packed = logits_of(config, params, tokens_BT, positions_BT, segments_BT)[0]
    start = 0
    for n in lengths:
        # Alone: at the start of a row, with nothing after it that could be seen.
        alone = logits_of(config, params, jnp.roll(tokens_BT, -start, axis=1))[0, :n]
        np.testing.assert_allclose(packed[start : start + n], alone, atol=1e-5 * np.abs(alone).max())
        start += n


def test_shared_weights_with_zero_cross_out_equal_the_baseline():
    baseline, shared = tiny(num_stacks=1), tiny(shared_weights=True, num_stacks=3)
    params = params_of(baseline)
    cross = jax.tree.map(lambda leaf: leaf, params_of(shared)["cross"])
    cross["attention"]["out"] = jnp.zeros_like(cross["attention"]["out"])
    tokens_BT = tokens_of(baseline, 2, T)
    assert (logits_of(baseline, params, tokens_BT) == logits_of(shared, params | {"cross": cross}, tokens_BT)).all()


def test_one_stack_is_the_baseline_whatever_the_cross_attention_fields_say():
    plain = tiny(num_stacks=1)
    params = params_of(plain)
    tokens_BT = tokens_of(plain, 2, T)
    other = tiny(num_stacks=1, shared_weights=True, lag=2, cross_window=3, cross_attention="parallel")
    assert jax.tree.structure(params) == jax.tree.structure(stagformer.abstract_params(other))
    assert (logits_of(plain, params, tokens_BT) == logits_of(other, params, tokens_BT)).all()


@functools.cache
def loss_and_gradient(name, **options):
    config = VARIANTS[name]
    tokens_BT = tokens_of(config, 2, T)
    loss = lambda params: jnp.sum(jnp.sin(logits_of(config, params, tokens_BT, **options)))
    return jax.jit(jax.value_and_grad(loss))(params_of(config))


@pytest.mark.parametrize(
    "options", [{"scan_layers": False}, {"remat": "layer"}, {"remat": "layer", "scan_layers": False}]
)
@pytest.mark.parametrize("name", ["baseline", "shared", "everything", "window_1"])
def test_scan_and_remat_change_neither_logits_nor_gradients(name, options):
    expected, found = loss_and_gradient(name), loss_and_gradient(name, **options)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3))


def test_remat_recomputes_each_layer():
    config = tiny(num_stacks=1)
    params = params_of(config)
    tokens_BT = tokens_of(config, 1, T)

    def saved(remat):
        loss = lambda params: logits_of(config, params, tokens_BT, remat=remat, scan_layers=False).sum()
        return sum(np.size(leaf) for leaf in jax.tree.leaves(jax.vjp(loss, params)[1]))

    assert saved("layer") < 0.7 * saved("none")


def test_no_weights_that_the_variant_does_not_use():
    has = lambda **changes: set(stagformer.abstract_params(tiny(**changes)).get("cross", {}).get("attention", {}))
    norm = lambda **changes: "norm" in stagformer.abstract_params(tiny(**changes)).get("cross", {})
    assert has(num_stacks=1) == set()
    assert has() == {"query", "key", "value", "out"}
    assert has(cross_window=1) == {"value", "out"}
    assert norm()
    assert not norm(cross_window=1)
    assert not norm(cross_attention="parallel")
    assert "combine" in stagformer.abstract_params(tiny(combine="linear"))
    assert "combine" not in stagformer.abstract_params(tiny())


def test_every_combination_of_features_can_be_differentiated():
    combinations = every_combination()
    assert len(combinations) == 3 * 2 * 2 * 3 * 3 * 2 * 2
    for config in combinations[::11]:  # 11 divides none of the axes, so each value meets each other value
        gradient = jax.eval_shape(
            jax.grad(lambda p, c=config: logits_of(c, p, tokens_of(c, 1, 5)).sum()), stagformer.abstract_params(config)
        )
        assert jax.tree.structure(gradient) == jax.tree.structure(stagformer.abstract_params(config))


def test_initialisation_has_the_stated_scales():
    config = dataclasses.replace(
        tiny(), model_dim=128, num_heads=8, num_kv_heads=8, head_dim=16, ff_dim=256, vocab_size=500
    )
    params = stagformer.init_params(config, jax.random.key(0))
    std = lambda leaf: float(jnp.std(leaf))
    block = params["blocks"]
    assert std(params["embedding"]) == pytest.approx(128**-0.5, rel=0.02)
    assert std(params["position_embedding"]) == pytest.approx(0.02, rel=0.05)
    assert std(block["self_attention"]["query"]) == pytest.approx(128**-0.5, rel=0.02)
    assert std(block["self_attention"]["out"]) == pytest.approx((128 * 6) ** -0.5, rel=0.02)
    assert std(block["mlp"]["down"]) == pytest.approx((256 * 6) ** -0.5, rel=0.02)
    first, second = block["mlp"]["gate"]
    assert not jnp.array_equal(first, second)
    assert not jnp.array_equal(first[0], first[1])
