"""The decode step: one function for every variant, for recurrent decoding, and for one device or many.

At step i every stack runs on the same token, and reads outputs of the previous stack that earlier steps handed over.
So within a step no stack waits for another (unless lag is 0, the control without staggering). The function is one
chip's part of an SPMD program; `loop` puts it into `jax.shard_map`.
"""

import functools

import jax
import jax.numpy as jnp

from stagjax.decoding import cache
from stagjax.decoding.cache import DecodeState
from stagjax.decoding.placement import RECURRENT, DecodeParams, Placement
from stagjax.decoding.slices import Slices
from stagjax.decoding.stack import Rows, run_stack
from stagjax.model.layers import Rotary


def decode_step(
    placement: Placement, params: DecodeParams, state: DecodeState, tokens_B: jax.Array
) -> tuple[jax.Array, DecodeState]:
    """Decode one token of every row.

    Args:
      placement: what runs where.
      params: in decoding form, this chip's part.
      state: of the step before; donate it.
      tokens_B: the tokens to read, of this chip's rows.

    Returns:
      y_BD, what the logits of the next token read, the same on all chips; and the next state.
    """
    config, slices = placement.config, Slices(placement)
    # Sent first and read by no stack of this step: with a lag of two slices it has the whole step to arrive.
    arriving_BD = None if state.outbox is None else slices.hand_over(state.outbox)
    positions_B = jnp.clip(state.slot - state.starts_B, 0, config.max_length - 1)
    x_BD = embed(placement, params, tokens_B, positions_B)
    if config.lag == 0:
        outs, caches = _serial(placement, params, state, x_BD, positions_B)
        memory, outbox = state.memory, None
    else:
        outs, caches = [], []
        for stack, memory, held in zip(params.stacks, state.memory, state.caches, strict=True):
            memory_RD = None if memory is None else memory[0]
            out_RD, updated = _run(placement, stack, x_BD, memory_RD, positions_B, state, held)
            outs += jnp.split(out_RD, placement.passes)
            caches.append(updated)
        memory, outbox = _hand_over(placement, state, outs, arriving_BD)
    y_BD = combine(placement, params, outs)
    return y_BD, DecodeState(tuple(caches), memory, outbox, state.slot + 1, state.starts_B)


@jax.named_scope("embedding")
def embed(placement: Placement, params: DecodeParams, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Return sqrt(D) E[token] + Pos[position] in the compute dtype; the chip that holds a token's row sends it to all.

    As `stagformer.embed` does, on a table whose rows are divided over the chips.
    """
    slices, table_VD = Slices(placement), params.embedding
    V, dtype = table_VD.shape[0], table_VD.dtype
    local = tokens - slices.chip() * V
    e = table_VD[jnp.clip(local, 0, V - 1)]
    if slices.chips > 1:
        e = slices.sum_all(jnp.where(((local >= 0) & (local < V))[..., None], e, 0))
    wide = jnp.promote_types(dtype, jnp.float32)
    return (e.astype(wide) * placement.config.model_dim**0.5 + params.position_embedding[positions]).astype(dtype)


@jax.named_scope("combination")
def combine(placement: Placement, params: DecodeParams, outs: list[jax.Array]) -> jax.Array:
    """Return y, what the logits read, on every chip: the last stack's output, or the learned combination of all.

    Of several passes a recurrent one is read alone, as it is, also where a prefill combines all of them.
    """
    slices, config = Slices(placement), placement.config
    alone = config.combine == "last" or len(outs) < config.num_stacks
    # Where nothing reads the other stacks' outputs they are added, or the compiler would drop those stacks too.
    if slices.slices == 1 and alone and (placement.reads_memory or len(outs) == 1):
        return outs[-1]
    own = [alpha.astype(out.dtype) * out for alpha, out in zip(params.alpha, outs, strict=True)]
    y_BD = functools.reduce(jnp.add, own)
    return slices.sum_stacks(y_BD) if placement.computes("logits") else y_BD


@jax.named_scope("logits")
def logits(placement: Placement, params: DecodeParams, y_BD: jax.Array) -> jax.Array:
    """Return this chip's part of the logits, float32 (or wider): [B, its share of the vocabulary]."""
    B = y_BD.shape[0]
    rows = Rows(B, B - B % -placement.rows)
    wide = jnp.promote_types(y_BD.dtype, jnp.float32)
    if not placement.computes("logits"):
        # What sampling then reads: it needs y, so that nothing of the step is left out with the product.
        return y_BD[:, :1].astype(wide) + 1e-6 * jnp.arange(params.embedding.shape[0], dtype=wide)
    return jnp.einsum("BD,VD->BV", rows.widen(y_BD), params.embedding, preferred_element_type=wide)[:B]


def _run(placement, stack, x_BD, memory_RD, positions_B, state: DecodeState, held: tuple) -> tuple[jax.Array, tuple]:
    """Run one stack, or the passes that run as one, on one token a row."""
    passes, R = placement.passes, placement.passes * x_BD.shape[0]
    starts_R = jnp.tile(state.starts_B, passes)

    def attend(l: int, kind: str, q_RNH, k_RKH, v_RKH):
        layer_cache = held[l][kind == "cross"]
        # Queries are rows of a product too, but padding them costs nothing that is read from memory.
        return cache.attend(layer_cache, state.slot, starts_R, q_RNH, k_RKH, v_RKH, placement.rows)

    rotary = Rotary(placement.config, jnp.tile(positions_B, passes), x_BD.dtype)
    rows = Rows(R, R - R % -placement.rows)
    return run_stack(
        placement, stack, jnp.tile(x_BD, (passes, 1)), memory_RD, rotary, attend, rows, memory_at_once=True
    )


def _hand_over(
    placement: Placement, state: DecodeState, outs: list[jax.Array], arriving_BD: jax.Array | None
) -> tuple[tuple[jax.Array | None, ...], jax.Array | None]:
    """Return what the stacks of this chip will read, and what leaves during the next step."""
    if not placement.reads_memory:
        return state.memory, None
    slices, outbox = Slices(placement), None
    if placement.slices > 1:
        if state.outbox is None:
            arriving_BD = slices.hand_over(outs[0])
        else:
            outbox = outs[0]
        arrived = [arriving_BD]
    elif placement.mode == RECURRENT:
        arrived = [outs[0]]
    elif placement.passes > 1:
        arrived = [jnp.concatenate([jnp.zeros_like(outs[0]), *outs[:-1]])]
    else:
        arrived = [None, *outs[:-1]]
    memory = tuple(
        None if old is None else jnp.concatenate([old[1:], new[None]])
        for old, new in zip(state.memory, arrived, strict=True)
    )
    return memory, outbox


def _serial(placement: Placement, params: DecodeParams, state: DecodeState, x_BD, positions_B) -> tuple[list, list]:
    """Run the stacks one after the other, each on the output of the one before: lag 0.

    On slices all of them run in every round, and slice s is right from round s on; it writes the same slot again.
    """
    slices = Slices(placement)
    if placement.slices == 1:
        outs, caches = [], []
        for stack, held in zip(params.stacks, state.caches, strict=True):
            reads = "memory_in" in stack or "memory_out" in stack
            memory_BD = (outs[-1] if outs else jnp.zeros_like(x_BD)) if reads else None
            out_BD, updated = _run(placement, stack, x_BD, memory_BD, positions_B, state, held)
            outs.append(out_BD)
            caches.append(updated)
        return outs, caches
    memory_BD, held = jnp.zeros_like(x_BD), state.caches[0]
    for number in range(placement.slices):
        out_BD, held = _run(placement, params.stacks[0], x_BD, memory_BD, positions_B, state, held)
        if number < placement.slices - 1:
            memory_BD = slices.hand_over(out_BD)
    return [out_BD], [held]
