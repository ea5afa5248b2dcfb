"""Attention over rows against its definition, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.model.attention import causal_attention


def by_definition(q_BTNH, k_BTKH, v_BTKH, segments_BT, window):
    """Return softmax(q k^T / sqrt(H)) v over visible slots, in plain operations that JAX differentiates itself."""
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = jnp.repeat(k_BTKH, groups, axis=2), jnp.repeat(v_BTKH, groups, axis=2)
    length = q_BTNH.shape[1]
    t, s = np.arange(length)[:, None], np.arange(length)[None, :]
    visible = (s <= t) & (t - s < (window or length)) & (segments_BT[:, :, None] == segments_BT[:, None, :])
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BTNH) / q_BTNH.shape[-1] ** 0.5
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1), v_BTNH)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("length", [1, 16, 50])
def test_values_and_gradients_are_those_of_the_definition(window, length):
    draw = np.random.default_rng(0)
    segments_BT = np.sort(draw.integers(0, 3, (2, length)), axis=-1)
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(draw.normal(size=(2, length, heads, 8))) for heads in (4, 2, 2))
        weight = jnp.asarray(draw.normal(size=q.shape))
        blocks = lambda *qkv: jnp.sum(weight * causal_attention(*qkv, segments_BT, window, block=16))
        plain = lambda *qkv: jnp.sum(weight * by_definition(*qkv, segments_BT, window))
        found, wanted = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (blocks, plain))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 7])
def test_queries_behind_earlier_slots_are_the_last_of_a_whole_row(window):
    draw = np.random.default_rng(0)
    segments_BT = np.sort(draw.integers(0, 3, (2, 50)), axis=-1)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 50, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    whole = causal_attention(q, k, v, segments_BT, window)
    np.testing.assert_allclose(causal_attention(q[:, 13:], k, v, segments_BT, window, 16), whole[:, 13:], atol=1e-6)
