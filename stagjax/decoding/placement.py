"""From a checkpoint's parameter tree to the form in which decoding reads it fastest."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stagjax.config import ModelConfig
from stagjax.errors import UserError
from stagjax.model.stagformer import Params, weight_sets

PARALLEL, RECURRENT = "parallel", "recurrent"


class Stack(NamedTuple):
    """One stack that runs in a decode step: its layers one by one, and the stack whose outputs it reads (or None)."""

    layers: tuple[tuple[Params, Params | None], ...]
    out_norm: Params


class DecodeParams(NamedTuple):
    """Parameters in the compute dtype, unstacked: a step reads each array once and slices none.

    Attributes:
      shared: what all stacks use: embedding, position_embedding and, where there is one, combine.
      stacks: those that run in a step. Passes that share weights hold the same arrays, not copies.
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


def place(config: ModelConfig, params: Params, mode: str = PARALLEL) -> DecodeParams:
    """Return the decoding form of `params`: layers unstacked, matrices in the compute dtype.

    Norm scales and position embedding stay float32: they are small, and their sums are taken in float32.
    """
    shared, blocks_WL, cross_XL, norms_W = _unstack(config, params)
    stacks = []
    for s in range(config.num_stacks) if mode == PARALLEL else (config.num_stacks - 1,):
        w, x = weight_sets(config, s)
        cross_L = (None,) * config.layers_per_stack if x is None else cross_XL[x]
        stacks.append(Stack(tuple(zip(blocks_WL[w], cross_L, strict=True)), norms_W[w]))
    return DecodeParams(shared, tuple(stacks))


@functools.partial(jax.jit, static_argnums=0)
def _unstack(config: ModelConfig, params: Params) -> tuple[Params, list, list, list]:
    dtype = jnp.dtype(config.compute_dtype)

    def at(tree: Params, *index: int) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _cast(path, leaf[index], dtype), tree)

    def layers(tree: Params, sets: int) -> list[list[Params]]:
        return [[at(tree, number, l) for l in range(config.layers_per_stack)] for number in range(sets)]

    shared = {name: leaf for name, leaf in params.items() if name not in ("blocks", "cross", "out_norm")}
    shared["embedding"] = shared["embedding"].astype(dtype)
    return (
        shared,
        layers(params["blocks"], config.num_weight_sets),
        layers(params["cross"], config.num_cross_sets) if config.num_cross_sets else [],
        [at(params["out_norm"], w) for w in range(config.num_weight_sets)],
    )


def _cast(path: tuple, leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return leaf if path[-1].key == "scale" else leaf.astype(dtype)
