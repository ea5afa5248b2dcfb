"""Prefill: all stacks over whole prompts, kept as the state that decode steps go on from.

On the same chips stacks run one after the other. On slices they are pipelined: prompts are cut into chunks, and stack s
runs on a chunk while stack s-1 runs on the next one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stagjax.config_rules import divisors
from stagjax.decoding.cache import DecodeState, LayerCache, from_prefill
from stagjax.decoding.placement import RECURRENT, DecodeParams, Placement
from stagjax.decoding.slices import Slices
from stagjax.decoding.stack import Rows, run_stack
from stagjax.decoding.step import combine, embed
from stagjax.errors import UserError
from stagjax.model.attention import shift_memory
from stagjax.model.kernels import row_attention
from stagjax.model.layers import Rotary

MAX_CHUNKS = 8

# A round reads all weights of a stack: with fewer rows an accelerator waits for them (v5e: 197 TFLOP/s over 819 GB/s
# are 240 rows of a bfloat16 product). A core of a CPU takes 1.6 times as long for a row of 32 as for one of 256.
CHUNK_ROWS, CPU_CHUNK_ROWS = 256, 64

# Shorter chunks of many rows would spend a round on what does not shrink with them: operations and sums of small size.
CHUNK_SLOTS = 32


def prefill(
    placement: Placement,
    params: DecodeParams,
    tokens_BT: jax.Array,
    starts_B: jax.Array,
    capacity: int,
    chunks: int | None = None,
) -> tuple[list[jax.Array], DecodeState]:
    """Run all stacks over left-padded prompts; one chip's part of an SPMD program, as `decode_step` is.

    Args:
      placement: what runs where.
      params: in decoding form, this chip's part.
      tokens_BT: BOS and pieces of each prompt, aligned at the right; what stands before `starts_B` is ignored.
      starts_B: slot of each row's BOS.
      capacity: slots of the caches: at least T and the steps to come.
      chunks: that slices cut the prompts into; None for `choose_chunks`. What comes back does not depend on it.

    Returns:
      The outputs [B,T,D] of this chip's stacks (`last_y` and `all_y` make what the logits read of them), and the
      state whose next slot is T.

    Raises:
      UserError: `chunks` does not divide T, or stacks do not run on slices.
    """
    if chunks is None:
        chunks = choose_chunks(placement, *tokens_BT.shape)
    _check_chunks(placement, tokens_BT.shape[1], chunks)
    prompts = _Prompts(placement, params, tokens_BT, starts_B, capacity)
    if placement.slices > 1:
        outs, caches, memory, outbox = _over_slices(prompts, chunks)
    else:
        outs, caches, memory = _in_turn(prompts)
        outbox = None
    state = DecodeState(caches, memory, outbox, jnp.asarray(tokens_BT.shape[1], jnp.int32), starts_B)
    return outs, state


def choose_chunks(placement: Placement, batch: int, length: int) -> int:
    """Return how many chunks a prefill is cut into: the most that divide it evenly and are each worth a round.

    C chunks on p slices take (C+p-1)/C of a stack's time, so that more than a few gain little.

    Args:
      placement: one slice takes one chunk.
      batch: rows of a chip.
      length: slots of the prompts.
    """
    if placement.slices == 1:
        return 1
    shortest = max(CHUNK_SLOTS, -(-rows_worth_a_round(placement) // batch))
    return max(C for C in divisors(length) if C == 1 or (C <= MAX_CHUNKS and length // C >= shortest))


def rows_worth_a_round(placement: Placement) -> int:
    """Return how many rows of a chunk a platform needs to compute with its usual efficiency."""
    return CPU_CHUNK_ROWS if placement.mesh.devices.flat[0].platform == "cpu" else CHUNK_ROWS


def _check_chunks(placement: Placement, length: int, chunks: int) -> None:
    if placement.slices == 1 and chunks != 1:
        raise UserError(f"chunks={chunks} does not fit mesh.stack=1: stacks on the same chips take no turns; use 1")
    if chunks < 1 or length % chunks:
        usable = ", ".join(map(str, divisors(length)))
        raise UserError(f"chunks={chunks} does not divide prompts of {length} slots; use one of {usable}")


def all_y(placement: Placement, params: DecodeParams, outs: list[jax.Array]) -> jax.Array:
    """Return y of every position, [B,T,D]."""
    return combine(placement, params, outs)


def last_y(placement: Placement, params: DecodeParams, outs: list[jax.Array]) -> jax.Array:
    """Return y of the last position, [B,D]: nothing else of the prompt leaves its slice."""
    return combine(placement, params, [out_BTD[:, -1] for out_BTD in outs])


class _Prompts:
    """The prompts, and what stacks take from them and leave behind."""

    def __init__(self, placement: Placement, params: DecodeParams, tokens_BT, starts_B, capacity: int):
        self.placement, self.params, self.config = placement, params, placement.config
        self.capacity = capacity
        self.B, self.T = tokens_BT.shape
        slots_1T = jnp.arange(self.T)[None]
        self.inside_BT = slots_1T >= starts_B[:, None]
        self.segment_ids_BT = self.inside_BT.astype(jnp.int32)
        self.positions_BT = jnp.clip(slots_1T - starts_B[:, None], 0, self.config.max_length - 1)
        self.x_BTD = embed(placement, params, tokens_BT, self.positions_BT)

    def memory(self, out_BTD: jax.Array) -> jax.Array:
        """Return what a stack behind these outputs reads, slot by slot."""
        return shift_memory(out_BTD, self.config.lag, self.segment_ids_BT)

    def run(self, stack: dict, x_BTD, memory_BTD, positions_BT, attend) -> tuple[jax.Array, tuple]:
        """Run a stack over all slots, or over a chunk of them; return its outputs and what `attend` returned.

        `attend` is that of `run_stack`, but takes and returns [B,T,heads,H].
        """
        shape = x_BTD.shape
        R = shape[0] * shape[1]
        flat = lambda x: x.reshape(R, *x.shape[2:])

        def attend_rows(l: int, kind: str, *qkv: jax.Array) -> tuple[jax.Array, Any]:
            heads_BTNH, kept = attend(l, kind, *(x.reshape(*shape[:2], *x.shape[1:]) for x in qkv))
            return flat(heads_BTNH), kept

        reads = "memory_in" in stack or "memory_out" in stack
        out_RD, kept = run_stack(
            self.placement,
            stack,
            flat(x_BTD),
            flat(memory_BTD) if reads else None,
            Rotary(self.config, flat(positions_BT), x_BTD.dtype),
            attend_rows,
            Rows(R, R),
            memory_at_once=False,
        )
        return out_RD.reshape(shape), kept

    def window(self, kind: str) -> int | None:
        """Return how many slots an attention sees."""
        return self.config.cross_window if kind == "cross" else None

    def cache(self, kind: str, keys_BTKH: jax.Array, values_BTKH: jax.Array) -> LayerCache:
        """Return the cache of an attention whose keys and values these are."""
        return from_prefill(keys_BTKH, values_BTKH, self.capacity, self.window(kind))

    def tail(self, out_BTD: jax.Array) -> jax.Array | None:
        """Return the last `lag` outputs, zeros where the document has none yet: [lag,B,D]."""
        lag = self.config.lag
        if lag == 0:
            return None
        out_BTD = jnp.where(self.inside_BT[..., None], out_BTD, 0)
        return jnp.swapaxes(jnp.pad(out_BTD, ((0, 0), (lag, 0), (0, 0)))[:, -lag:], 0, 1)


def _in_turn(prompts: _Prompts) -> tuple[list, tuple, tuple]:
    """Run all stacks on the same chips."""
    placement, stacks = prompts.placement, prompts.params.stacks
    P, passes = placement.config.num_stacks, placement.passes

    def attend(l: int, kind: str, q_BTNH, k_BTKH, v_BTKH) -> tuple[jax.Array, LayerCache]:
        heads_BTNH = row_attention(q_BTNH, k_BTKH, v_BTKH, prompts.segment_ids_BT, prompts.window(kind))
        return heads_BTNH, prompts.cache(kind, k_BTKH, v_BTKH)

    outs, kept = [], []
    for s in range(P):
        stack = stacks[s] if len(stacks) == P else stacks[0]
        memory_BTD = prompts.memory(outs[-1] if outs else jnp.zeros_like(prompts.x_BTD))
        out_BTD, caches = prompts.run(stack, prompts.x_BTD, memory_BTD, prompts.positions_BT, attend)
        outs.append(out_BTD)
        kept.append(caches)
    if placement.mode == RECURRENT:
        # The last pass goes on, from the outputs that it has read so far.
        return outs, (kept[-1],), (prompts.tail(outs[-2]),)
    if passes > 1:
        kept = [jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept)]
    if not placement.reads_memory:
        return outs, tuple(kept), (None,) * len(kept)
    read = [None if s == 0 else prompts.tail(outs[s - 1]) for s in range(P)]
    if passes > 1:
        read = [jnp.concatenate([jnp.zeros_like(read[1]), *read[1:]], axis=1)]
    return outs, tuple(kept), tuple(read)


class _Held(NamedTuple):
    """What a slice holds between rounds, of all slots [B,T,...] but for `arrived`; zeros where no chunk was yet.

    Attributes:
      arrived_BTD: outputs of the previous slice's stack on the chunk that comes next.
      received_BTD: all that arrived so far.
      out_BTD: outputs of its own stack.
      caches: keys and values, for each layer (self-attention's, cross-attention's or None).
    """

    arrived_BTD: jax.Array
    received_BTD: jax.Array
    out_BTD: jax.Array
    caches: tuple[tuple[Any, Any], ...]


class _Chunk:
    """The slots on which a slice runs its stack in one round.

    Before its first chunk a slice runs on the first, and what it writes then it writes again. After its last chunk it
    runs on the last, as does the slice before it by then: from the same inputs it writes what is there already.
    """

    def __init__(self, length: int, chunks: int, number: jax.Array):
        self.length = length
        self.first = jnp.clip(number, 0, chunks - 1) * length

    def of(self, x: jax.Array, earlier: int = 0, fill: int = 0) -> jax.Array:
        """Return the chunk's part of [B,T,...], and `earlier` slots before it; `fill` where there are none."""
        if earlier:
            x = jnp.pad(x, [(0, 0), (earlier, 0)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jax.lax.dynamic_slice_in_dim(x, self.first, earlier + self.length, axis=1)

    def put(self, held: jax.Array, new: jax.Array) -> jax.Array:
        """Return [B,T,...] with the chunk's part replaced."""
        return jax.lax.dynamic_update_slice_in_dim(held, new, self.first, axis=1)


def _over_slices(prompts: _Prompts, chunks: int) -> tuple[list, tuple, tuple, jax.Array | None]:
    """Run every slice's stack on one chunk a round: in round r slice s runs on chunk r - s.

    Slice s-1 ran on that chunk one round earlier, so that its outputs arrive just in time. With C chunks on p slices
    that are C+p-1 rounds, each of them 1/C of a stack.
    """
    placement, config = prompts.placement, prompts.config
    length = prompts.T // chunks

    def round_(r: jax.Array, held: _Held) -> _Held:
        return _round(prompts, _Chunk(length, chunks, r - jax.lax.axis_index("stack")), held)

    held = jax.lax.fori_loop(0, chunks + placement.slices - 1, round_, _nothing_held(prompts, length))
    cache = lambda kind, kept: None if kept is None else prompts.cache(kind, *kept)
    caches = tuple((cache("self", own), cache("cross", cross)) for own, cross in held.caches)
    memory, outbox = prompts.tail(held.received_BTD), None
    if config.lag > 1:
        memory, outbox = memory[:-1], prompts.tail(held.out_BTD)[-1]
    return [held.out_BTD], (caches,), (memory,), outbox


def _nothing_held(prompts: _Prompts, length: int) -> _Held:
    """Return what a slice holds before the first round."""
    config, stack, nothing_BTD = prompts.config, prompts.params.stacks[0], jnp.zeros_like(prompts.x_BTD)
    shape = (prompts.B, prompts.T, prompts.placement.layout.kv.shape[1], config.head_dim)
    nothing = (jnp.zeros(shape, nothing_BTD.dtype),) * 2
    own = nothing if prompts.placement.computes("self_attention") else None
    caches = ((own, nothing if "memory_in" in stack else None),) * config.layers_per_stack
    return _Held(nothing_BTD[:, :length], nothing_BTD, nothing_BTD, caches)


def _round(prompts: _Prompts, chunk: _Chunk, held: _Held) -> _Held:
    """Run the slice's stack on a chunk, and hand over what it makes of it."""
    received_BTD = chunk.put(held.received_BTD, held.arrived_BTD)

    def attend(l: int, kind: str, q_BTNH, *new: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        window, earlier = prompts.window(kind), prompts.T - chunk.length
        keys_BSKH, values_BSKH = kept = tuple(map(chunk.put, held.caches[l][kind == "cross"], new))
        # As many slots before the chunk as its queries could see, whichever chunk it is: one static mask serves all of
        # them, and with it the fused kernels. Slots before the first are of a document that no query is of.
        earlier = earlier if window is None else min(window - 1, earlier)
        heads_BTNH = row_attention(
            q_BTNH,
            chunk.of(keys_BSKH, earlier),
            chunk.of(values_BSKH, earlier),
            chunk.of(prompts.segment_ids_BT, earlier, fill=-1),
            window,
        )
        return heads_BTNH, kept

    out_BTD, caches = prompts.run(
        prompts.params.stacks[0],
        chunk.of(prompts.x_BTD),
        chunk.of(prompts.memory(received_BTD)),
        chunk.of(prompts.positions_BT),
        attend,
    )
    # The last round's arrives for nobody: one message too many costs less than a second copy of the stack's program.
    arrived_BTD = Slices(prompts.placement).hand_over(out_BTD)
    return _Held(arrived_BTD, received_BTD, chunk.put(held.out_BTD, out_BTD), caches)
