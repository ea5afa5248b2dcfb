"""The programs that are planned and measured: the very functions that decode and train, and abstract arguments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from stagjax.config import Config
from stagjax.decoding.loop import (
    ROWS,
    Drawing,
    abstract_state,
    check_batch,
    drawing_program,
    start_program,
)
from stagjax.decoding.placement import Placement, abstract_placed
from stagjax.decoding.prefill import choose_chunks
from stagjax.decoding.sampling import Sampling
from stagjax.sharding import check_training
from stagjax.training.step import training_program


class Traceable(NamedTuple):
    """A program before it is compiled.

    Attributes:
      function: already under `jax.jit`, with its donated arguments.
      arguments: `jax.ShapeDtypeStruct`s with shardings.
      mesh: that it runs on.
      held: bytes a chip of each kind of argument, e.g. {"parameters": ..., "self caches": ...}.
      read: bytes a chip that one run must read from memory: what the HBM floor is made of.
    """

    function: Callable
    arguments: tuple[Any, ...]
    mesh: Mesh
    held: dict[str, int]
    read: int


def decode_program(placement: Placement, batch: int, context: int) -> Traceable:
    """Return one greedy decode step of `batch` rows with caches of `context` slots.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    check_batch(placement, batch)
    params, state = abstract_placed(placement), abstract_state(placement, batch, context)
    tokens_B, keys_B = _rows(placement, batch)
    drawing = Drawing(Sampling(), placement.config.vocab_size)
    held = {"parameters": chip_bytes(params)} | _cache_bytes(state)
    # Of the position embedding only the rows of B tokens are read; the caches are read whole, and so is the vocabulary.
    read = sum(held.values()) - chip_bytes(params.position_embedding)
    function = jax.jit(drawing_program(placement, drawing), donate_argnums=1)
    return Traceable(function, (params, state, tokens_B, keys_B), placement.mesh, held, read)


def prefill_program(placement: Placement, batch: int, length: int, chunks: int | None = None) -> Traceable:
    """Return the prefill of `batch` prompts of `length` tokens each, into caches of that many slots.

    Args:
      placement: what runs where.
      batch: prompts.
      length: of each.
      chunks: that slices cut them into, 1 for slices that take turns; None for as many as decoding takes.

    Raises:
      UserError: the batch does not divide over the mesh, or the prompts not into chunks.
    """
    check_batch(placement, batch)
    if chunks is None:
        chunks = choose_chunks(placement, batch // placement.mesh.shape["data"], length)
    params = abstract_placed(placement)
    starts_B, keys_B = _rows(placement, batch)
    tokens_BT = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=starts_B.sharding)
    drawing = Drawing(Sampling(), placement.config.vocab_size)
    held = {"parameters": chip_bytes(params)}
    # Every slice runs in all rounds, so it reads its stack once a round, and the vocabulary once, for the logits.
    rounds = chunks + placement.slices - 1
    read = rounds * chip_bytes(params.stacks) + chip_bytes(params.embedding)
    function = jax.jit(start_program(placement, drawing, length, chunks))
    return Traceable(function, (params, tokens_BT, starts_B, keys_B), placement.mesh, held, read)


def train_program(config: Config, mesh: Mesh) -> Traceable:
    """Return a training step over the whole global batch.

    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    rows = config.training.global_batch // config.training.accumulation
    check_training(config.model, mesh, rows, config.training.microbatches)
    function, arguments = training_program(config, mesh)
    held = {"parameters and optimizer": chip_bytes(arguments[0]), "batch": chip_bytes(arguments[1])}
    return Traceable(function, arguments, mesh, held, sum(held.values()))


def chip_bytes(tree: Any) -> int:
    """Return the bytes that one chip holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _cache_bytes(state: Any) -> dict[str, int]:
    layers = [layer for stack in state.caches for layer in stack]
    return {
        "self caches": chip_bytes([own for own, _ in layers]),
        "cross caches": chip_bytes([cross for _, cross in layers]),
    }


def _rows(placement: Placement, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return an int32 and a PRNG key a row."""
    rows = NamedSharding(placement.mesh, ROWS)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    return (
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct((batch,), keys_B.dtype, sharding=rows),
    )
