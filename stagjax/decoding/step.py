"""The decode step: one function for every variant and for recurrent decoding.

At step i every stack runs on the same token, and stack s reads outputs of stack s-1 that earlier steps left in
`history`. So within a step no stack waits for another (unless lag is 0, the control without staggering).
"""

import functools

import jax
import jax.numpy as jnp

from stagjax.config import ModelConfig
from stagjax.decoding import cache
from stagjax.decoding.cache import DecodeState
from stagjax.decoding.placement import DecodeParams, Stack
from stagjax.model import stagformer
from stagjax.model.attention import own_slot
from stagjax.model.layers import Rotary, layer


def decode_step(
    config: ModelConfig,
    sources: tuple[int | None, ...],
    params: DecodeParams,
    state: DecodeState,
    tokens_B: jax.Array,
) -> tuple[jax.Array, DecodeState]:
    """Decode one token of every row.

    Args:
      config: the model's shape.
      sources: for each running stack, the running stack whose outputs are its memory (`placement.sources`).
      params: in decoding form.
      state: of the step before; donate it.
      tokens_B: the tokens to read.

    Returns:
      y_BD, what the logits of the next token read, and the next state.
    """
    positions_B1 = jnp.clip(state.slot - state.starts_B, 0, config.max_length - 1)[:, None]
    x_B1D = stagformer.embed(config, params.shared, tokens_B[:, None], positions_B1)
    rotary = Rotary(config, positions_B1, x_B1D.dtype)
    outs: list[jax.Array] = []
    caches = []
    for stack, source, stack_caches in zip(params.stacks, sources, state.caches, strict=True):
        memory_B1D = None
        if source is not None:
            memory_B1D = outs[source] if config.lag == 0 else state.history[source][0][:, None]
        out_B1D, stack_caches = _run_stack(config, stack, x_B1D, memory_B1D, rotary, state, stack_caches)
        outs.append(out_B1D)
        caches.append(stack_caches)
    history = tuple(
        None if kept is None else jnp.concatenate([kept[1:], out_B1D[None, :, 0]])
        for kept, out_B1D in zip(state.history, outs, strict=True)
    )
    # The recurrent pass is read as it is, also where a full step would combine all passes.
    y_B1D = outs[0] if len(outs) < config.num_stacks else stagformer.readout(config, params.shared, outs)
    return y_B1D[:, 0], DecodeState(tuple(caches), history, state.slot + 1, state.starts_B)


def _run_stack(
    config: ModelConfig,
    stack: Stack,
    x_B1D: jax.Array,
    memory_B1D: jax.Array | None,
    rotary: Rotary,
    state: DecodeState,
    caches: tuple,
) -> tuple[jax.Array, tuple]:
    def attend(layer_cache, q, k, v):
        if q is None:
            return own_slot(v, config.num_heads), None
        return cache.attend(layer_cache, state.slot, state.starts_B, q, k, v)

    updated = []
    for weights, (self_cache, cross_cache) in zip(stack.layers, caches, strict=True):
        block, cross = stagformer.build(config, *weights)
        x_B1D, layer_caches = layer(
            block,
            cross,
            x_B1D,
            memory_B1D,
            rotary,
            functools.partial(attend, self_cache),
            functools.partial(attend, cross_cache),
        )
        updated.append(layer_caches)
    return stagformer.normalize(config, stack.out_norm, x_B1D), tuple(updated)
