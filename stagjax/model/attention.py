"""Attention over rows: causal, optionally local, never across a document boundary."""

import jax
import jax.numpy as jnp

# Finite, so that a query without any visible slot (padding) yields numbers rather than NaN.
MASKED = -1e30


def causal_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_ids_BS: jax.Array,
    window: int | None = None,
    block: int = 128,
) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the slots t-window+1..t of each query's own segment.

    The T queries are those of the last T of S slots: of all of them, or of a part of a row that follows earlier ones.
    Query head n reads key head n // (N/K). Queries are taken in blocks, and each block reads only the slots that one
    of its queries may see: half of the work of a causal mask, and less under a window. Scores and softmax are in
    float32 (or wider).

    Args:
      q_BTNH: rotated queries.
      k_BSKH: rotated keys.
      v_BSKH: values.
      segment_ids_BS: document of each slot; slots of different documents do not see each other.
      window: slots a query sees, its own included; None for all.
      block: queries in a block.

    Returns:
      heads_BTNH in the dtype of v.
    """
    S = k_BSKH.shape[1]
    outputs, begin = [], S - q_BTNH.shape[1]
    for start in range(begin, S, block):
        stop = min(start + block, S)
        first = 0 if window is None else max(0, start - window + 1)
        t_T1 = jnp.arange(start, stop)[:, None]
        s_1S = jnp.arange(first, stop)[None, :]
        visible_TS = s_1S <= t_T1
        if window is not None:
            visible_TS &= s_1S > t_T1 - window
        same_BTS = segment_ids_BS[:, start:stop, None] == segment_ids_BS[:, None, first:stop]
        q_of_block = q_BTNH[:, start - begin : stop - begin]
        outputs.append(
            masked_attention(q_of_block, k_BSKH[:, first:stop], v_BSKH[:, first:stop], visible_TS & same_BTS)
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def masked_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the visible slots, as [B,T,N,H] in the dtype of v."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    heads_BKGTH = _heads_attend(q_BKGTH, jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2), visible_BTS)
    return heads_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@jax.custom_vjp
def _heads_attend(q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Attend, heads first. The gradient is written out: the derived one walks more often over arrays of scores."""
    return _heads_attend_forward(q_BKGTH, k_BKSH, v_BKSH, visible_BTS)[0]


def _heads_attend_forward(q_BKGTH, k_BKSH, v_BKSH, visible_BTS):
    wide = jnp.promote_types(q_BKGTH.dtype, jnp.float32)
    scores_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=wide)
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS * q_BKGTH.shape[-1] ** -0.5, MASKED)
    powers_BKGTS = jnp.exp(scores_BKGTS - jnp.max(scores_BKGTS, axis=-1, keepdims=True))
    # Normalised after the product with the values: a division per head dimension instead of one per slot.
    total_BKGT1 = jnp.sum(powers_BKGTS, axis=-1, keepdims=True)
    powers_BKGTS = powers_BKGTS.astype(v_BKSH.dtype)
    sums_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", powers_BKGTS, v_BKSH, preferred_element_type=wide)
    heads_BKGTH = (sums_BKGTH / total_BKGT1).astype(v_BKSH.dtype)
    return heads_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, powers_BKGTS, total_BKGT1, heads_BKGTH)


def _heads_attend_backward(kept, grad_BKGTH):
    """Return the gradients by the softmax's rule: d score = weight * (d weight - sum over slots of weight * d weight).

    The sum is grad . heads, and dividing grad by the softmax's total first makes the kept powers stand for weights.
    """
    q_BKGTH, k_BKSH, v_BKSH, powers_BKGTS, total_BKGT1, heads_BKGTH = kept
    dtype, wide = v_BKSH.dtype, total_BKGT1.dtype
    scaled_BKGTH = grad_BKGTH.astype(wide) / total_BKGT1
    mean_BKGT1 = jnp.sum(scaled_BKGTH * heads_BKGTH.astype(wide), axis=-1, keepdims=True)
    scaled_BKGTH = scaled_BKGTH.astype(dtype)
    d_weights_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", scaled_BKGTH, v_BKSH, preferred_element_type=wide)
    d_scores_BKGTS = (powers_BKGTS * (d_weights_BKGTS - mean_BKGT1) * q_BKGTH.shape[-1] ** -0.5).astype(dtype)
    dq_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", d_scores_BKGTS, k_BKSH)
    # Slots last, so that the small factor is transposed and not the scores.
    dk_BKHS = jnp.einsum("BKGTH,BKGTS->BKHS", q_BKGTH, d_scores_BKGTS)
    dv_BKHS = jnp.einsum("BKGTH,BKGTS->BKHS", scaled_BKGTH, powers_BKGTS)
    return dq_BKGTH, jnp.swapaxes(dk_BKHS, 2, 3), jnp.swapaxes(dv_BKHS, 2, 3), None


_heads_attend.defvjp(_heads_attend_forward, _heads_attend_backward)


def own_slot(v_BTKH: jax.Array, num_heads: int) -> jax.Array:
    """Return attention of window 1, [B,T,N,H]: the softmax over one slot is 1, so each head is its slot's value."""
    return jnp.repeat(v_BTKH, num_heads // v_BTKH.shape[2], axis=2)


def shift_memory(out_BTD: jax.Array, lag: int, segment_ids_BT: jax.Array) -> jax.Array:
    """Shift outputs right by `lag` within each document: slot t holds out_{t-lag}, or zeros before the start."""
    if lag == 0:
        return out_BTD
    shifted_BTD = jnp.pad(out_BTD, ((0, 0), (lag, 0), (0, 0)))[:, : out_BTD.shape[1]]
    earlier_BT = jnp.pad(segment_ids_BT, ((0, 0), (lag, 0)), constant_values=-1)[:, : segment_ids_BT.shape[1]]
    return jnp.where((earlier_BT == segment_ids_BT)[..., None], shifted_BTD, 0)
