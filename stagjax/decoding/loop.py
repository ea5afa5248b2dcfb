"""The way of a token: prefill, then compiled chunks of decode steps with donated caches."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stagjax.config import ModelConfig
from stagjax.decoding.cache import DecodeState
from stagjax.decoding.placement import PARALLEL, DecodeParams, place, sources
from stagjax.decoding.prefill import prefill
from stagjax.decoding.sampling import Sampling, sample
from stagjax.decoding.step import decode_step
from stagjax.model import stagformer
from stagjax.model.stagformer import Params

MAX_CHUNK = 32


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
      config: the model's shape.
      params: as a checkpoint holds them.
      mode: "parallel" (all stacks at once) or "recurrent" (shared weights, one pass a token).
      num_ids: ids of the vocabulary; the rest of the embedding is never drawn. Default: all.
    """

    def __init__(self, config: ModelConfig, params: Params, mode: str = PARALLEL, num_ids: int | None = None):
        self.config, self.params, self.mode = config, params, mode
        self.num_ids = config.vocab_size if num_ids is None else num_ids
        self.placed = place(config, params, mode)

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
        """
        capacity = round_up(tokens_BT.shape[1] + max_new_tokens, 32)
        statics = (self.config, self.mode, sampling, self.num_ids, stop_id)
        carry, first = _start(*statics, capacity, self.params, tokens_BT, starts_B, keys_B)
        drawn = 1
        stopped = yield Chunk(*(np.asarray(leaf)[None] for leaf in first))
        while drawn < max_new_tokens:
            if stopped is not None:
                carry = carry._replace(done_B=carry.done_B | stopped)
            if np.asarray(carry.done_B).all():
                return
            count = min(chunk, MAX_CHUNK, max_new_tokens - drawn)
            carry, drawn_nB = _go_on(*statics, self.placed, carry, keys_B, jnp.int32(count))
            drawn += count
            stopped = yield Chunk(*(np.asarray(leaf)[:count] for leaf in drawn_nB))


def teacher_forced_logits(
    config: ModelConfig, params: Params, tokens_BT: jax.Array, prompt_length: int, mode: str = PARALLEL
) -> jax.Array:
    """Return logits [B,T,V] for given tokens: prefill up to `prompt_length`, then the decode path token by token."""
    B, T = tokens_BT.shape
    starts_B = jnp.zeros(B, jnp.int32)
    y_BTD, state = prefill(config, params, tokens_BT[:, :prompt_length], starts_B, T, mode)
    step = functools.partial(decode_step, config, sources(config, mode), place(config, params, mode))

    def body(state: DecodeState, tokens_B: jax.Array) -> tuple[DecodeState, jax.Array]:
        y_BD, state = step(state, tokens_B)
        return state, y_BD

    _, y_TBD = jax.lax.scan(body, state, jnp.asarray(tokens_BT)[:, prompt_length:].T)
    return stagformer.logits(params, jnp.concatenate([y_BTD, jnp.swapaxes(y_TBD, 0, 1)], axis=1))


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _start(config, mode, sampling, num_ids, stop_id, capacity, params: Params, tokens_BT, starts_B, keys_B):
    y_BTD, state = prefill(config, params, tokens_BT, starts_B, capacity, mode)
    positions_B = state.slot - starts_B
    tokens_B, logprobs_B = sample(sampling, stagformer.logits(params, y_BTD[:, -1]), keys_B, positions_B, num_ids)
    return Carry(state, tokens_B, _ends(tokens_B, stop_id)), (tokens_B, logprobs_B)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnames="carry")
def _go_on(config, mode, sampling, num_ids, stop_id, placed: DecodeParams, carry: Carry, keys_B, count):
    """Draw `count` tokens a row; buffers have the longest chunk's size, so that every count is one program."""
    step = functools.partial(decode_step, config, sources(config, mode), placed)
    B = carry.tokens_B.shape[0]
    drawn_nB = (jnp.zeros((MAX_CHUNK, B), jnp.int32), jnp.zeros((MAX_CHUNK, B), jnp.float32))

    def body(n, loop):
        carry, drawn_nB = loop
        y_BD, state = step(carry.state, carry.tokens_B)
        tokens_B, logprobs_B = sample(
            sampling, stagformer.logits(placed.shared, y_BD), keys_B, state.slot - state.starts_B, num_ids
        )
        drawn_nB = tuple(
            jax.lax.dynamic_update_index_in_dim(buffer, new, n, 0)
            for buffer, new in zip(drawn_nB, (tokens_B, logprobs_B), strict=True)
        )
        return Carry(state, tokens_B, carry.done_B | _ends(tokens_B, stop_id)), drawn_nB

    return jax.lax.fori_loop(0, count, body, (carry, drawn_nB))


def _ends(tokens_B: jax.Array, stop_id: int | None) -> jax.Array:
    return jnp.zeros(tokens_B.shape, bool) if stop_id is None else tokens_B == stop_id
