"""What decoding remembers: per-layer key and value caches, and the outputs that are handed from stack to stack.

Rows of a batch are aligned at their ends: prompts are padded on the left, so that in every step all rows write the
same slot. Row b's first token sits in slot `starts_B[b]`; its position is slot - start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

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
    """Everything that one step takes from the one before. On a mesh each chip holds its part (`STATE_SPECS`).

    Passes that run as one (`Placement.passes`) are rows: pass-major, [passes B].

    Attributes:
      caches: for each stack of a chip, for each layer, (self-attention's cache, cross-attention's cache or None).
      memory: for each stack of a chip, the outputs of the previous stack that it has still to read, [n, passes B, D],
        oldest first; None where nothing is read.
      outbox: outputs [B,D] that are handed over during the next step; None unless a lag of two or more slices lets
        them travel for a whole step.
      slot: int32 scalar, the slot that the next token is written to.
      starts_B: first slot of each row.
    """

    caches: tuple[tuple[tuple[LayerCache, LayerCache | None], ...], ...]
    memory: tuple[jax.Array | None, ...]
    outbox: jax.Array | None
    slot: jax.Array
    starts_B: jax.Array


# Which part of a state's arrays each chip holds: slices, groups of rows, then chips of a slice.
STATE_SPECS = DecodeState(
    caches=PartitionSpec(("stack", "data", "tensor")),
    memory=PartitionSpec(None, ("stack", "data")),
    outbox=PartitionSpec(("stack", "data")),
    slot=PartitionSpec(),
    starts_B=PartitionSpec("data"),
)


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


def repeat_rows(state: DecodeState, copies: int, passes: int) -> DecodeState:
    """Return the state of `copies` equal rows for each row, which follow each other; one chip's part.

    Args:
      state: of one chip.
      copies: of each row.
      passes: passes that are rows of the state's arrays, `Placement.passes`.
    """
    B = state.starts_B.shape[0]

    def repeat(x: jax.Array, axis: int, passes: int) -> jax.Array:
        # Along an axis that is passes, rows, and what a row has several of (kv heads).
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        apart = x.reshape(*before, passes, B, -1, *after)
        return jnp.repeat(apart, copies, axis=axis + 1).reshape(*before, -1, *after)

    return DecodeState(
        caches=jax.tree.map(lambda x_CSH: repeat(x_CSH, 0, passes), state.caches),
        memory=jax.tree.map(lambda x: repeat(x, 1, passes), state.memory),
        outbox=None if state.outbox is None else repeat(state.outbox, 0, 1),
        slot=state.slot,
        starts_B=repeat(state.starts_B, 0, 1),
    )


def attend(
    cache: LayerCache,
    slot: jax.Array,
    starts_B: jax.Array,
    q_BNH: jax.Array,
    k_BKH: jax.Array,
    v_BKH: jax.Array,
    rows: int = 1,
) -> tuple[jax.Array, LayerCache]:
    """Write one token's key and value at `slot`, then attend to every slot of the row that the cache still holds.

    Args:
      cache: of B rows and K kv heads.
      slot: where all rows write.
      starts_B: first slot of each row.
      q_BNH: rotated queries.
      k_BKH: rotated keys.
      v_BKH: values.
      rows: the query heads of a kv head are padded to a multiple of this.

    Returns:
      heads_BNH in the dtype of v, and the cache.
    """
    B, N, H = q_BNH.shape
    K, S = k_BKH.shape[1], cache.keys_CSH.shape[1]
    G = N // K
    index = slot % S
    cache = LayerCache(
        jax.lax.dynamic_update_slice_in_dim(cache.keys_CSH, k_BKH.reshape(B * K, 1, H), index, axis=1),
        jax.lax.dynamic_update_slice_in_dim(cache.values_CSH, v_BKH.reshape(B * K, 1, H), index, axis=1),
    )
    held_S = slot - (slot - jnp.arange(S)) % S  # the slot that each index holds; negative where none was written yet
    visible_C1S = jnp.repeat(held_S >= starts_B[:, None], K, axis=0)[:, None]
    wide = jnp.promote_types(q_BNH.dtype, jnp.float32)
    q_CGH = jnp.pad(q_BNH.reshape(B * K, G, H), ((0, 0), (0, -G % rows), (0, 0)))
    scores_CGS = jnp.einsum("CGH,CSH->CGS", q_CGH, cache.keys_CSH, preferred_element_type=wide) * H**-0.5
    scores_CGS = jnp.where(visible_C1S, scores_CGS, MASKED)
    powers_CGS = jnp.exp(scores_CGS - jnp.max(scores_CGS, axis=-1, keepdims=True))
    total_CG1 = jnp.sum(powers_CGS, axis=-1, keepdims=True)
    sums_CGH = jnp.einsum("CGS,CSH->CGH", powers_CGS.astype(v_BKH.dtype), cache.values_CSH, preferred_element_type=wide)
    heads_CGH = (sums_CGH / total_CG1)[:, :G]
    return heads_CGH.reshape(B, N, H).astype(v_BKH.dtype), cache
