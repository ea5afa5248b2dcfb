"""Prefill: one forward pass over the prompts, kept as the state that decode steps go on from."""

import jax
import jax.numpy as jnp

from stagjax.config import ModelConfig
from stagjax.decoding.cache import DecodeState, LayerCache, from_prefill
from stagjax.decoding.placement import RECURRENT
from stagjax.model import stagformer
from stagjax.model.stagformer import Params


def prefill(
    config: ModelConfig, params: Params, tokens_BT: jax.Array, starts_B: jax.Array, capacity: int, mode: str
) -> tuple[jax.Array, DecodeState]:
    """Run all stacks over left-padded prompts.

    Args:
      config: the model's shape.
      params: as `init_params` returns them.
      tokens_BT: BOS and pieces of each prompt, aligned at the right; what stands before `starts_B` is ignored.
      starts_B: slot of each row's BOS.
      capacity: slots of the caches: at least T and the steps to come.
      mode: "parallel", or "recurrent" to go on with the last pass alone.

    Returns:
      y_BTD, what the logits read, and the state whose next slot is T.
    """
    T = tokens_BT.shape[1]
    slots_1T = jnp.arange(T)[None]
    inside_BT = slots_1T >= starts_B[:, None]
    outputs = stagformer.forward(
        config, params, tokens_BT, jnp.maximum(slots_1T - starts_B[:, None], 0), inside_BT.astype(jnp.int32), keep=True
    )
    last = config.num_stacks - 1
    running = (last,) if mode == RECURRENT else range(config.num_stacks)
    # What a running stack hands over: its own outputs; the recurrent pass goes on from those that it has read so far.
    handed = (last - 1,) if mode == RECURRENT else range(last)
    history = [_tail(outputs.stacks[s], inside_BT, config.lag) for s in handed]
    state = DecodeState(
        caches=tuple(_layer_caches(config, outputs.kept[s], capacity) for s in running),
        history=tuple(history + [None] * (len(running) - len(history))),
        slot=jnp.asarray(T, jnp.int32),
        starts_B=starts_B,
    )
    return stagformer.readout(config, params, outputs.stacks), state


def _tail(out_BTD: jax.Array, inside_BT: jax.Array, lag: int) -> jax.Array | None:
    """Return the last `lag` outputs, zeros where the document has none yet: [lag,B,D]."""
    if lag == 0:
        return None
    out_BTD = jnp.where(inside_BT[..., None], out_BTD, 0)
    padded_BTD = jnp.pad(out_BTD, ((0, 0), (lag, 0), (0, 0)))
    return jnp.swapaxes(padded_BTD[:, -lag:], 0, 1)


def _layer_caches(config: ModelConfig, kept: tuple, capacity: int) -> tuple[tuple[LayerCache, LayerCache | None], ...]:
    self_kept, cross_kept = kept
    layers = []
    for l in range(config.layers_per_stack):
        cross = None
        if cross_kept is not None:
            cross = from_prefill(cross_kept[0][l], cross_kept[1][l], capacity, config.cross_window)
        layers.append((from_prefill(self_kept[0][l], self_kept[1][l], capacity), cross))
    return tuple(layers)
