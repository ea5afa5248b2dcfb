"""From a checkpoint's parameter tree to the form in which decoding reads it fastest."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stagjax.config import ModelConfig
from stagjax.errors import UserError
from stagjax.model.stagformer import Params, stack_params

PARALLEL, RECURRENT = "parallel", "recurrent"


class Stack(NamedTuple):
    """One stack that runs in a decode step: its layers one by one, and the stack whose outputs it reads (or None)."""

    layers: tuple[tuple[Params, Params | None], ...]
    out_norm: Params


class DecodeParams(NamedTuple):
    """Parameters in the compute dtype, unstacked: a step reads each array once and slices none.

    The float32 embedding and its copy in the compute dtype are one array where the two dtypes agree.
    """

    shared: dict[str, Any]
    stacks: tuple[Stack, ...]


def sources(config: ModelConfig, mode: str) -> tuple[int | None, ...]:
    """Return, for each stack that runs in a step, which running stack's outputs are its memory.

    Recurrent decoding runs the last pass alone, and that pass reads what it wrote itself.
    """
    if mode == RECURRENT:
        return (0,)
    return (None, *range(config.num_stacks - 1))


def can_recur(config: ModelConfig) -> bool:
    """Return whether recurrent decoding means anything for a model: shared weights, two or more passes, lag >= 1."""
    return config.shared_weights and config.num_stacks > 1 and config.lag > 0


def check_mode(config: ModelConfig, mode: str) -> None:
    """Raise `UserError` where a model cannot be decoded in `mode`."""
    if mode == RECURRENT and not can_recur(config):
        raise UserError(
            "recurrent decoding needs a shared-weights model of two or more passes and lag >= 1, but this one has "
            f"model.shared_weights={config.shared_weights}, model.num_stacks={config.num_stacks}, "
            f"model.lag={config.lag}; use parallel decoding"
        )


@functools.partial(jax.jit, static_argnums=(0, 2))
def place(config: ModelConfig, params: Params, mode: str = PARALLEL) -> DecodeParams:
    """Return the decoding form of `params`: layers unstacked, matrices in the compute dtype.

    Norm scales and position embedding stay float32: they are small, and their sums are taken in float32.
    """
    running = range(config.num_stacks) if mode == PARALLEL else (config.num_stacks - 1,)
    dtype = jnp.dtype(config.compute_dtype)
    shared = {name: leaf for name, leaf in params.items() if name not in ("blocks", "cross", "out_norm")}
    stacks = []
    for s in running:
        blocks_L, cross_L, out_norm = stack_params(config, params, s)
        layers = []
        for l in range(config.layers_per_stack):
            block, cross = jax.tree.map(lambda leaf: _cast(leaf[l], dtype), (blocks_L, cross_L))  # noqa: B023
            layers.append((block, cross))
        stacks.append(Stack(tuple(layers), out_norm))
    return DecodeParams(shared, tuple(stacks))


def _cast(leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return leaf.astype(dtype) if leaf.ndim > 1 else leaf
