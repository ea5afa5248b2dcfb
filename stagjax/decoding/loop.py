"""The way of a token: prefill, then compiled chunks of decode steps with donated caches.

Every program here is one SPMD program over the placement's mesh; on one device it is that device's whole program.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from stagjax import memory
from stagjax.decoding import step as steps
from stagjax.decoding.cache import STATE_SPECS, DecodeState
from stagjax.decoding.placement import (
    RECURRENT,
    DecodeParams,
    Placement,
    abstract_placed,
    load,
    place,
    shardings,
    specs,
)
from stagjax.decoding.prefill import all_y, last_y, prefill
from stagjax.decoding.sampling import Sampling, sample
from stagjax.decoding.slices import Slices
from stagjax.errors import UserError
from stagjax.model.accounting import cache_bytes
from stagjax.model.stagformer import Params

MAX_CHUNK = 32
ROWS, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


class Drawing(NamedTuple):
    """How tokens are drawn: static arguments of the compiled programs.

    Attributes:
      sampling: temperature and cuts.
      num_ids: ids of the vocabulary; rows of the embedding beyond them are never drawn.
      stop_id: a row ends after this token; None never ends one.
    """

    sampling: Sampling
    num_ids: int
    stop_id: int | None = None


class Carry(NamedTuple):
    """What goes from chunk to chunk: the caches, the last token drawn, and which rows have ended."""

    state: DecodeState
    tokens_B: jax.Array
    done_B: jax.Array


class Chunk(NamedTuple):
    """Tokens drawn by one call, on the host: ids and log-probabilities [n,B], also of rows that have ended."""

    tokens_nB: np.ndarray
    logprobs_nB: np.ndarray


class Decoder:
    """Decodes one model: holds its parameters in decoding form, and the compiled prefill and chunk.

    Args:
      placement: which model, in which mode, where (`make_placement`).
      params: as a checkpoint holds them, whatever their sharding.
      num_ids: ids of the vocabulary; the rest of the embedding is never drawn. Default: all.
    """

    def __init__(self, placement: Placement, params: Params, num_ids: int | None = None):
        self.placement = placement
        self.num_ids = placement.config.vocab_size if num_ids is None else num_ids
        self.placed = load(self.placement, params)

    def chunks(
        self,
        tokens_BT: np.ndarray,
        starts_B: np.ndarray,
        max_new_tokens: int,
        sampling: Sampling,
        keys_B: jax.Array,
        stop_id: int | None,
        chunk: int = MAX_CHUNK,
    ) -> Iterator[Chunk]:
        """Yield the tokens that follow left-padded prompts, a chunk at a time, until every row has ended.

        The receiver may `send` a bool array [B] of rows that need not go on (a stop string was found).

        Args:
          tokens_BT: BOS and pieces of each prompt, aligned at the right.
          starts_B: slot of each row's BOS.
          max_new_tokens: at most this many are drawn for a row.
          sampling: how.
          keys_B: one PRNG key a row.
          stop_id: a row ends after this token; None never ends one.
          chunk: tokens a call, at most 32; the result does not depend on it.

        Raises:
          UserError: the rows do not divide over the mesh's "data" axis.
          RunFailed: their caches do not fit into this machine's memory.
        """
        check_batch(self.placement, len(starts_B))
        capacity = round_up(tokens_BT.shape[1] + max_new_tokens, 32)
        caches = cache_bytes(self.placement.config, capacity, self.placement.mode == RECURRENT)
        memory.check_host(len(starts_B) * sum(caches.values()), decode_memory(len(starts_B), capacity))
        drawing = Drawing(sampling, self.num_ids, stop_id)
        carry, first = _start(self.placement, drawing, capacity, self.placed, tokens_BT, starts_B, keys_B)
        drawn = 1
        stopped = yield Chunk(*(_on_host(leaf)[None] for leaf in first))
        while drawn < max_new_tokens:
            if stopped is not None:
                carry = carry._replace(done_B=carry.done_B | stopped)
            if _on_host(carry.done_B).all():
                return
            count = min(chunk, MAX_CHUNK, max_new_tokens - drawn)
            carry, drawn_nB = go_on(self.placement, drawing, self.placed, carry, keys_B, jnp.int32(count))
            drawn += count
            stopped = yield Chunk(*(_on_host(leaf)[:count] for leaf in drawn_nB))


def decode_memory(batch: int, slots: int) -> str:
    """Return what decides the memory of decoding, and what to change where there is too little."""
    return (
        f"decoding {batch} rows of {slots} tokens (prompt and max_new_tokens) does not fit; decode fewer rows at once, "
        "ask for fewer tokens, or divide the model over more devices"
    )


def check_batch(placement: Placement, batch: int) -> None:
    """Raise `UserError` if the rows of a batch do not divide over the mesh's "data" axis."""
    groups = placement.mesh.shape["data"]
    if batch % groups:
        raise UserError(
            f"a batch of {batch} rows does not divide over mesh.data={groups}; use a multiple of {groups} rows"
        )


def draw_step(
    placement: Placement, drawing: Drawing, params: DecodeParams, state: DecodeState, tokens_B: jax.Array, keys_B
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Decode one token of every row and draw the next: one chip's part. Return state, tokens_B, logprobs_B."""
    y_BD, state = steps.decode_step(placement, params, state, tokens_B)
    return state, *_draw(placement, drawing, params, y_BD, keys_B, state)


def start(
    placement: Placement,
    drawing: Drawing,
    capacity: int,
    chunks: int | None,
    params: DecodeParams,
    tokens_BT,
    starts_B,
    keys_B,
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """Prefill prompts and draw the first token: one chip's part."""
    outs, state = prefill(placement, params, tokens_BT, starts_B, capacity, chunks)
    y_BD = last_y(placement, params, outs)
    tokens_B, logprobs_B = _draw(placement, drawing, params, y_BD, keys_B, state)
    return Carry(state, tokens_B, _ends(tokens_B, drawing.stop_id)), (tokens_B, logprobs_B)


def spmd(placement: Placement, part: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Return the program of which `part` is one chip's; to be traced inside `jax.jit`."""
    # What all chips compute alike (tokens, y) is declared so and not checked: the checker cannot see it of a gather.
    return jax.shard_map(part, mesh=placement.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def drawing_program(placement: Placement, drawing: Drawing) -> Callable:
    """Return the SPMD decode step: (params, state, tokens_B, keys_B) -> (state, tokens_B, logprobs_B)."""
    params_specs = specs(abstract_placed(placement))
    return spmd(
        placement,
        functools.partial(draw_step, placement, drawing),
        (params_specs, STATE_SPECS, ROWS, ROWS),
        (STATE_SPECS, ROWS, ROWS),
    )


def start_program(placement: Placement, drawing: Drawing, capacity: int, chunks: int | None = None) -> Callable:
    """Return the SPMD prefill: (params, tokens_BT, starts_B, keys_B) -> (Carry, (tokens_B, logprobs_B)).

    Slices cut prompts into `chunks`, by default as many as `prefill.choose_chunks` says.
    """
    params_specs = specs(abstract_placed(placement))
    return spmd(
        placement,
        functools.partial(start, placement, drawing, capacity, chunks),
        (params_specs, ROWS, ROWS, ROWS),
        (Carry(STATE_SPECS, ROWS, ROWS), (ROWS, ROWS)),
    )


def abstract_state(placement: Placement, batch: int, capacity: int) -> DecodeState:
    """Return the shapes, dtypes and shardings of the state of `batch` rows; nothing is allocated."""
    prompt = jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    program = start_program(placement, Drawing(Sampling(), placement.config.vocab_size), capacity)
    state = jax.eval_shape(program, abstract_placed(placement), *prompt, keys_B)[0].state
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings(placement, jax.tree.broadcast(STATE_SPECS, state)),
    )


def teacher_forced_logits(
    placement: Placement, params: Params, tokens_BT: jax.Array, prompt_length: int, chunks: int | None = None
) -> jax.Array:
    """Return logits [B,T,V] for given tokens: prefill up to `prompt_length`, then the decode path token by token.

    Slices prefill in `chunks`, as in `prefill`.
    """
    T = tokens_BT.shape[1]

    def part(params: DecodeParams, tokens_BT: jax.Array) -> jax.Array:
        starts_B = jnp.zeros(tokens_BT.shape[0], jnp.int32)
        outs, state = prefill(placement, params, tokens_BT[:, :prompt_length], starts_B, T, chunks)

        def body(state: DecodeState, tokens_B: jax.Array) -> tuple[DecodeState, jax.Array]:
            y_BD, state = steps.decode_step(placement, params, state, tokens_B)
            return state, steps.logits(placement, params, y_BD)

        first_TBD = jnp.swapaxes(all_y(placement, params, outs), 0, 1)
        first_TBV = jax.lax.map(lambda y_BD: steps.logits(placement, params, y_BD), first_TBD)
        _, rest_TBV = jax.lax.scan(body, state, tokens_BT[:, prompt_length:].T)
        return jnp.swapaxes(jnp.concatenate([first_TBV, rest_TBV]), 0, 1)

    placed = place(placement, params)
    program = spmd(placement, part, (specs(placed), ROWS), PartitionSpec("data", None, ("stack", "tensor")))
    return program(placed, jnp.asarray(tokens_BT))[..., : placement.config.vocab_size]


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(placement, drawing, capacity, params: DecodeParams, tokens_BT, starts_B, keys_B):
    return start_program(placement, drawing, capacity)(params, tokens_BT, starts_B, keys_B)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="carry")
def go_on(
    placement: Placement, drawing: Drawing, params: DecodeParams, carry: Carry, keys_B: jax.Array, count: jax.Array
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """Draw `count` tokens a row; buffers have the longest chunk's size, so that every count is one program."""

    def part(params, carry, keys_B, count):
        B = carry.tokens_B.shape[0]
        drawn_nB = (jnp.zeros((MAX_CHUNK, B), jnp.int32), jnp.zeros((MAX_CHUNK, B), jnp.float32))

        def body(n, loop):
            carry, drawn_nB = loop
            state, *new = draw_step(placement, drawing, params, carry.state, carry.tokens_B, keys_B)
            drawn_nB = tuple(
                jax.lax.dynamic_update_index_in_dim(buffer, row, n, 0)
                for buffer, row in zip(drawn_nB, new, strict=True)
            )
            return Carry(state, new[0], carry.done_B | _ends(new[0], drawing.stop_id)), drawn_nB

        return jax.lax.fori_loop(0, count, body, (carry, drawn_nB))

    carry_specs, drawn = Carry(STATE_SPECS, ROWS, ROWS), PartitionSpec(None, "data")
    program = spmd(placement, part, (specs(params), carry_specs, ROWS, EVERYWHERE), (carry_specs, (drawn, drawn)))
    return program(params, carry, keys_B, count)


def _draw(placement: Placement, drawing: Drawing, params: DecodeParams, y_BD, keys_B, state: DecodeState):
    slices, positions_B = Slices(placement), state.slot - state.starts_B
    logits_BV = steps.logits(placement, params, y_BD)
    first_id = slices.chip() * params.embedding.shape[0]
    if not placement.computes("sampling"):
        # The barrier keeps all logits: of one alone the compiler would make a product with one row.
        first_B = jax.lax.optimization_barrier(logits_BV)[:, 0]
        return (first_B > 0).astype(jnp.int32), first_B.astype(jnp.float32)
    with jax.named_scope("sampling"):
        return sample(drawing.sampling, logits_BV, keys_B, positions_B, drawing.num_ids, first_id, slices.gather)


def _on_host(x: jax.Array) -> np.ndarray:
    """Return all of an array; rows may be divided over the devices of several processes."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def _ends(tokens_B: jax.Array, stop_id: int | None) -> jax.Array:
    return jnp.zeros(tokens_B.shape, bool) if stop_id is None else tokens_B == stop_id
