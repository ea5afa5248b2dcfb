"""The training step and the validation step: pure functions of state and batch, and the programs of a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax import memory
from stagjax.config import Config
from stagjax.model import pipelining, stagformer
from stagjax.model.accounting import training_memory
from stagjax.model.gathering import by_group, gather_embeddings
from stagjax.model.stagformer import Params
from stagjax.sharding import constrain, constrain_parameters, spec, ways
from stagjax.training import guard as guards
from stagjax.training.optimizer import learning_rate_schedule, make_optimizer
from stagjax.training.state import TrainState, abstract_state

Batch = dict[str, jax.Array]


def training_program(config: Config, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple[TrainState, Batch, jax.Array]]:
    """Return the training step jitted for `mesh`, and the shapes, dtypes and shardings of its arguments.

    The step takes what `make_train_step`'s takes; the state is donated. Rows are divided over `data`, `fsdp`
    and `stack`, the state as `stagjax.sharding` says, and metrics are on every device.
    """
    state = abstract_state(config, mesh)
    arguments = state, _abstract_batch(config, mesh, config.training.global_batch), _abstract_lengths(config, mesh)
    shardings = _shardings(arguments)
    step = jax.jit(
        _on(mesh, make_train_step(config)),
        in_shardings=shardings,
        out_shardings=(shardings[0], NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    return step, arguments


def validation_program(config: Config, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple[Params, Batch, jax.Array]]:
    """Return the validation step jitted for `mesh`, and the shapes, dtypes and shardings of its arguments.

    A batch is as large as a part of a training batch, so that it fits into the same memory.
    """
    rows = config.training.global_batch // config.training.accumulation
    params = abstract_state(config, mesh)["params"]
    arguments = params, _abstract_batch(config, mesh, rows), _abstract_lengths(config, mesh)
    step = jax.jit(
        _on(mesh, make_validation_step(config)),
        in_shardings=_shardings(arguments),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    return step, arguments


def step_memory(config: Config) -> str:
    """Return what decides the memory of a training step, and what to change where there is too little."""
    training = config.training
    return (
        f"a step of training.global_batch={training.global_batch} in training.accumulation={training.accumulation} "
        f"part(s), training.remat={training.remat!r}, does not fit; raise training.accumulation, set "
        "training.remat=layer, or lower training.global_batch"
    )


def check_memory(config: Config, mesh: Mesh, compiled: jax.stages.Compiled | None = None) -> None:
    """Raise `RunFailed` where a step has no room in this machine, whose processor is the device.

    By the compiled program; or before there is one by an estimate, which is within a factor of 1.5 (a test compares
    them): a program too large by far does not even compile.
    """
    of_device = memory.compiled_bytes(compiled) if compiled else sum(training_memory(config).values()) / 2 / mesh.size
    memory.check_host(of_device * len(mesh.local_devices), step_memory(config))


def make_train_step(
    config: Config,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return step(state, batch, byte_lengths_V) -> (state, metrics); the caller jits it and donates the state.

    The loss is the mean over the tokens of the whole global batch, so `accumulation` changes memory, not the gradient
    (beyond rounding). An update that the policies for bad steps leave out changes neither parameters nor moments; the
    step counts all the same. Metrics are scalars: loss (nats per token), bits_per_byte, gradient_norm (before
    clipping), learning_rate, tokens, batch_hash (of the rows and their order, by which two runs are seen to read the
    same), spike (bool), skipped (updates, so far) and skipped_in_a_row.
    """
    optimizer = make_optimizer(config.training)
    schedule = learning_rate_schedule(config.training)
    parts = config.training.accumulation

    def step(state: TrainState, batch: Batch, byte_lengths_V: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        tokens = jnp.sum(batch["loss_weights"])
        gradient_of = jax.value_and_grad(lambda params, part: sum_nats(config, params, part) / tokens)
        if parts == 1:
            loss, gradient = gradient_of(state["params"], batch)
        else:
            loss, gradient = _accumulate(gradient_of, state["params"], batch, parts)
        updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        gradient_norm = optax.tree.norm(gradient)
        guard, verdict = guards.judge(config.training, state["guard"], loss, gradient_norm)
        metrics = {
            "loss": loss,
            "bits_per_byte": loss * tokens / jnp.log(2.0) / num_bytes(batch, byte_lengths_V),
            "gradient_norm": gradient_norm,
            "learning_rate": jnp.asarray(schedule(state["step"])),
            "tokens": tokens,
            "batch_hash": _batch_hash(batch),
            "spike": verdict.spike,
            "skipped": guard["skipped"],
            "skipped_in_a_row": guard["skipped_in_a_row"],
        }
        updated = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        if guards.may_skip(config.training):
            updated = guards.unless(verdict.skip, updated, {name: state[name] for name in updated})
        return updated | {"step": state["step"] + 1, "guard": guard}, metrics

    return step


def make_validation_step(config: Config) -> Callable[[Params, Batch, jax.Array], dict[str, jax.Array]]:
    """Return step(params, batch, byte_lengths_V) -> sums over each row, all [B]: nats, tokens, bytes."""

    def step(params: Params, batch: Batch, byte_lengths_V: jax.Array) -> dict[str, jax.Array]:
        return {
            "nats": sum_nats(config, params, batch, by_row=True),
            "tokens": jnp.sum(batch["loss_weights"], axis=1),
            "bytes": jnp.sum(byte_lengths_V[batch["targets"]] * batch["loss_weights"], axis=1),
        }

    return step


def sum_nats(config: Config, params: Params, batch: Batch, by_row: bool = False) -> jax.Array:
    """Return the cross-entropy of a batch's targets in nats, float32, summed over all or, [B], over each row.

    Padding weighs nothing.
    """
    params = gather_embeddings(config.model.compute_dtype, params)
    y_BTD = _predictions(config, params, batch)
    # Cast here, once: inside the chunks the whole tied embedding would be read and cast again for each of them.
    embedding = params["embedding"].astype(y_BTD.dtype)
    nats = functools.partial(_row_nats, config.training.loss_chunks, 1 if by_row else None)
    nats = by_group(nats, embedding, y_BTD, batch["targets"], batch["loss_weights"])
    return nats.reshape(-1) if by_row else jnp.sum(nats)


def _predictions(config: Config, params: Params, batch: Batch) -> jax.Array:
    """Return y_BTD of all stacks: one after the other, or on a mesh of slices at the same time."""
    rows = batch["inputs"], batch["positions"], batch["segment_ids"]
    options = {name: getattr(config.training, name) for name in ("remat", "scan_layers", "attention")}
    if ways("stack") > 1:
        microbatches = pipelining.num_microbatches(config, jax.sharding.get_abstract_mesh())
        return pipelining.forward(config.model, params, *rows, microbatches, **options)
    outputs = stagformer.forward(config.model, params, *rows, **options)
    return stagformer.readout(config.model, params, outputs.stacks)


def num_bytes(batch: Batch, byte_lengths_V: jax.Array) -> jax.Array:
    """Return the UTF-8 bytes of the text behind a batch's targets."""
    return jnp.sum(byte_lengths_V[batch["targets"]] * batch["loss_weights"])


def _batch_hash(batch: Batch) -> jax.Array:
    """Return a checksum of the inputs and targets that does not depend on how they are divided, uint32.

    Each number counts times an odd one that its place gives it, modulo 2**32.
    """
    targets_BT = batch["targets"]
    row_BT, column_BT = (jax.lax.broadcasted_iota(jnp.uint32, targets_BT.shape, axis) for axis in (0, 1))
    place_BT = 2 * (row_BT * targets_BT.shape[1] + column_BT) + 1
    words_BT = targets_BT.astype(jnp.uint32) + jnp.uint32(0x9E3779B1) * batch["inputs"].astype(jnp.uint32)
    return jnp.sum(words_BT * place_BT, dtype=jnp.uint32)


def _row_nats(
    chunks: int,
    axis: int | None,
    embedding_VD: jax.Array,
    y_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> jax.Array:
    """Return the cross-entropy of rows in nats, summed over `axis` of [B,T] (None: both).

    It is computed in `chunks` of positions, one after the other.
    """

    def chunk_nats(y_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
        logits_BTV = stagformer.logits({"embedding": embedding_VD}, y_BTD)
        nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT) * weights_BT
        return jnp.sum(nats_BT, axis=axis)

    if chunks == 1:
        return chunk_nats(y_BTD, targets_BT, weights_BT)

    def split(leaf: jax.Array) -> jax.Array:
        # Along positions, so that a chunk has all rows: a device may have but one of them.
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], chunks, -1, *leaf.shape[2:]), 1, 0)

    remembered = jax.checkpoint(chunk_nats)  # only y is kept for the backward pass, never a chunk's logits
    tokens = jax.tree.map(split, (y_BTD, targets_BT, weights_BT))
    zero = jnp.zeros(() if axis is None else y_BTD.shape[:1])
    return jax.lax.scan(lambda nats, chunk: (nats + remembered(*chunk), None), zero, tokens)[0]


def _accumulate(
    gradient_of: Callable[[Params, Batch], tuple[jax.Array, Params]], params: Params, batch: Batch, parts: int
) -> tuple[jax.Array, Params]:
    """Sum loss and gradient over `parts` equal parts of the batch, one after the other."""

    def split(leaf: jax.Array) -> jax.Array:
        # Part i is every parts-th row from row i on: of neighbouring rows, which a device has, an equal share.
        return constrain(jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0), None, "rows", None)

    def add(total: tuple, part: Batch) -> tuple[tuple, None]:
        loss, gradient = jax.tree.map(jnp.add, total, gradient_of(params, part))
        return (loss, constrain_parameters(gradient)), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return jax.lax.scan(add, (jnp.zeros(()), constrain_parameters(zero)), jax.tree.map(split, batch))[0]


def _on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` traced under `mesh`, by which `constrain` divides and attention chooses its kernel."""

    @functools.wraps(function)
    def placed(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return placed


def _abstract_batch(config: Config, mesh: Mesh, rows: int) -> Batch:
    """Return the shapes and shardings of what `stagjax.data.packing.expand` returns for all rows of all hosts."""
    sharding = NamedSharding(mesh, spec(("rows", None), "training"))
    dtypes = dict.fromkeys(("inputs", "targets", "positions", "segment_ids"), jnp.int32) | {"loss_weights": jnp.float32}
    shape = (rows, config.data.row_length)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}


def _abstract_lengths(config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct((config.model.vocab_size,), jnp.float32, sharding=replicated)


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
