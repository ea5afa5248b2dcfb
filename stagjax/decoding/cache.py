"""What decoding remembers: per-layer key and value caches, and the outputs that are handed from stack to stack.

Rows of a batch are aligned at their ends: prompts are padded on the left, so that in every step all rows write the
same slot. Row b's first token sits in slot `starts_B[b]`; its position is slot - start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stagjax.model.attention import MASKED


class LayerCache(NamedTuple):
    """Keys (rotated before they are written) and values of one attention, both [C,S,H]: C is the kv heads of all rows.

    Rows and heads are one dimension because that is what the matrix products read: with two, XLA:CPU reads a cache
    through a reshape, cannot tell that it is the one being written, and copies it at every step (1.1 to 1.4 times the
    time of a token). A cache with fewer slots than the sequence is a ring: slot t is written at index t modulo its
    size, so it holds the last S slots, which is all that a window of S sees.
    """

    keys_CSH: jax.Array
    values_CSH: jax.Array


class DecodeState(NamedTuple):
    """Everything that one step takes from the one before.

    Attributes:
      caches: for each stack that runs, for each layer, (self-attention's cache, cross-attention's cache or None).
      history: for each stack that runs, its last `lag` outputs [lag,B,D], oldest first; None where nobody reads them.
      slot: int32 scalar, the slot that the next token is written to.
      starts_B: first slot of each row.
    """

    caches: tuple[tuple[tuple[LayerCache, LayerCache | None], ...], ...]
    history: tuple[jax.Array | None, ...]
    slot: jax.Array
    starts_B: jax.Array


def from_prefill(keys_BTKH: jax.Array, values_BTKH: jax.Array, capacity: int, window: int | None = None) -> LayerCache:
    """Return a cache of `capacity` slots, or a ring of `window` if that is less, holding a prefill's T slots."""

    def fill(x_BTKH: jax.Array) -> jax.Array:
        B, T, K, H = x_BTKH.shape
        x_CTH = jnp.swapaxes(x_BTKH, 1, 2).reshape(B * K, T, H)
        size = capacity if window is None else min(capacity, window)
        if T <= size:
            return jnp.pad(x_CTH, ((0, 0), (0, size - T), (0, 0)))
        return jnp.roll(x_CTH[:, T - size :], T % size, axis=1)

    return LayerCache(fill(keys_BTKH), fill(values_BTKH))


def attend(
    cache: LayerCache,
    slot: jax.Array,
    starts_B: jax.Array,
    q_B1NH: jax.Array,
    k_B1KH: jax.Array,
    v_B1KH: jax.Array,
) -> tuple[jax.Array, LayerCache]:
    """Write one token's key and value at `slot`, then attend to every slot of the row that the cache still holds."""
    B, _, N, H = q_B1NH.shape
    K, S = k_B1KH.shape[2], cache.keys_CSH.shape[1]
    index = slot % S
    cache = LayerCache(
        jax.lax.dynamic_update_slice_in_dim(cache.keys_CSH, k_B1KH.reshape(B * K, 1, H), index, axis=1),
        jax.lax.dynamic_update_slice_in_dim(cache.values_CSH, v_B1KH.reshape(B * K, 1, H), index, axis=1),
    )
    held_S = slot - (slot - jnp.arange(S)) % S  # the slot that each index holds; negative where none was written yet
    visible_C1S = jnp.repeat(held_S >= starts_B[:, None], K, axis=0)[:, None]
    wide = jnp.promote_types(q_B1NH.dtype, jnp.float32)
    q_CGH = q_B1NH.reshape(B * K, N // K, H)
    scores_CGS = jnp.einsum("CGH,CSH->CGS", q_CGH, cache.keys_CSH, preferred_element_type=wide) * H**-0.5
    weights_CGS = jax.nn.softmax(jnp.where(visible_C1S, scores_CGS, MASKED), axis=-1).astype(v_B1KH.dtype)
    heads_CGH = jnp.einsum("CGS,CSH->CGH", weights_CGS, cache.values_CSH)
    return heads_CGH.reshape(B, 1, N, H), cache
