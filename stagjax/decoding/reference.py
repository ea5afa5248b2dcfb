"""The slow sequential reference: no caches, every stack after the one below it, the whole prefix again at every step.

It shares nothing with the decode step but the forward pass over rows, and is what the step is tested against.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from stagjax.config import ModelConfig
from stagjax.decoding.loop import Chunk
from stagjax.decoding.sampling import Sampling, sample
from stagjax.model import stagformer
from stagjax.model.attention import shift_memory
from stagjax.model.layers import Rotary
from stagjax.model.stagformer import Params


class SequentialDecoder:
    """Draws tokens like `loop.Decoder`, one at a time, by running all stacks over the whole prefix for each."""

    def __init__(self, config: ModelConfig, params: Params, num_ids: int | None = None):
        self.config, self.params = config, params
        self.num_ids = config.vocab_size if num_ids is None else num_ids

    def chunks(
        self,
        tokens_BT: np.ndarray,
        starts_B: np.ndarray,
        max_new_tokens: int,
        sampling: Sampling,
        keys_B: jax.Array,
        stop_id: int | None,
        chunk: int = 1,
    ) -> Iterator[Chunk]:
        """Yield one token a row at a time; arguments as for `loop.Decoder.chunks` (`chunk` changes nothing here)."""
        del chunk
        T = tokens_BT.shape[1]
        tokens_BS = jnp.pad(jnp.asarray(tokens_BT), ((0, 0), (0, max_new_tokens)))
        done_B = np.zeros(len(starts_B), bool)
        for slot in range(T, T + max_new_tokens):
            new_B, logprobs_B = _draw(
                self.config, sampling, self.num_ids, self.params, tokens_BS, jnp.asarray(starts_B), keys_B, slot
            )
            stopped = yield Chunk(np.asarray(new_B)[None], np.asarray(logprobs_B)[None])
            done_B = done_B | (np.asarray(new_B) == stop_id)
            if stopped is not None:
                done_B = done_B | stopped
            if done_B.all():
                return
            tokens_BS = tokens_BS.at[:, slot].set(new_B)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(config, sampling, num_ids, params, tokens_BS, starts_B, keys_B, slot):
    slots_1S = jnp.arange(tokens_BS.shape[1])[None]
    positions_BS = jnp.clip(slots_1S - starts_B[:, None], 0, config.max_length - 1)
    inside_BS = (slots_1S >= starts_B[:, None]).astype(jnp.int32)
    outputs = stagformer.forward(config, params, tokens_BS, positions_BS, inside_BS)
    y_BSD = stagformer.readout(config, params, outputs.stacks)
    logits_BV = stagformer.logits(params, jax.lax.dynamic_index_in_dim(y_BSD, slot - 1, axis=1, keepdims=False))
    return sample(sampling, logits_BV, keys_B, slot - starts_B, num_ids)


def sequential_logits(config: ModelConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
    """Return the teacher-forced logits [B,T,V] of whole documents."""
    positions_BT, segment_ids_BT = _one_document(tokens_BT)
    outputs = stagformer.forward(config, params, tokens_BT, positions_BT, segment_ids_BT)
    return stagformer.logits(params, stagformer.readout(config, params, outputs.stacks))


def sequential_recurrent_logits(
    config: ModelConfig, params: Params, tokens_BT: jax.Array, prompt_length: int
) -> jax.Array:
    """Return logits [B,T,V]: p passes over the prompt, then one pass a token (paper section 3.2).

    Each token runs the last pass over the whole sequence anew, with the memory known by then: pass p-2's outputs over
    the prompt, the recurrent pass's own outputs after it.
    """
    positions_BT, segment_ids_BT = _one_document(tokens_BT)
    outputs = stagformer.forward(config, params, tokens_BT, positions_BT, segment_ids_BT)
    prompt_BTV = stagformer.logits(params, stagformer.readout(config, params, outputs.stacks))
    x_BTD = stagformer.embed(config, params, tokens_BT, positions_BT)
    rotary = Rotary(config, positions_BT, x_BTD.dtype)
    attends = stagformer.row_attends(config, segment_ids_BT)
    last = stagformer.stack_params(config, params, config.num_stacks - 1)
    after_T1 = (jnp.arange(tokens_BT.shape[1]) >= prompt_length)[:, None]

    def one_token(t: int, read_BTD: jax.Array) -> jax.Array:
        memory_BTD = shift_memory(read_BTD, config.lag, segment_ids_BT)
        out_BTD, _ = stagformer.run_stack(config, x_BTD, rotary, *attends, *last, memory_BTD)
        return read_BTD.at[:, t].set(out_BTD[:, t])

    read_BTD = jnp.where(after_T1, 0, outputs.stacks[-2])
    read_BTD = jax.lax.fori_loop(prompt_length, tokens_BT.shape[1], one_token, read_BTD)
    return jnp.where(after_T1, stagformer.logits(params, read_BTD), prompt_BTV)


def _one_document(tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return positions_BT, jnp.ones_like(tokens_BT)
