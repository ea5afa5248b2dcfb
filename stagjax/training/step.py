"""The training step and the validation step: pure functions of state and batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from stagjax.config import Config
from stagjax.model import stagformer
from stagjax.model.stagformer import Params
from stagjax.training.optimizer import learning_rate_schedule, make_optimizer
from stagjax.training.state import TrainState

Batch = dict[str, jax.Array]


def make_train_step(
    config: Config,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return step(state, batch, byte_lengths_V) -> (state, metrics); the caller jits it and donates the state.

    The loss is the mean over the tokens of the whole global batch, so `accumulation` changes memory, not the gradient
    (beyond rounding). Metrics are scalars: loss (nats per token), bits_per_byte, gradient_norm (before clipping),
    learning_rate, tokens.
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
        metrics = {
            "loss": loss,
            "bits_per_byte": loss * tokens / jnp.log(2.0) / num_bytes(batch, byte_lengths_V),
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state["step"])),
            "tokens": tokens,
        }
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return step


def make_validation_step(config: Config) -> Callable[[Params, Batch, jax.Array], dict[str, jax.Array]]:
    """Return step(params, batch, byte_lengths_V) -> sums over the batch: nats, tokens, bytes."""

    def step(params: Params, batch: Batch, byte_lengths_V: jax.Array) -> dict[str, jax.Array]:
        return {
            "nats": sum_nats(config, params, batch),
            "tokens": jnp.sum(batch["loss_weights"]),
            "bytes": num_bytes(batch, byte_lengths_V),
        }

    return step


def sum_nats(config: Config, params: Params, batch: Batch) -> jax.Array:
    """Return the summed cross-entropy of a batch's targets in nats, float32; padding weighs nothing."""
    outputs = stagformer.forward(
        config.model,
        params,
        batch["inputs"],
        batch["positions"],
        batch["segment_ids"],
        remat=config.training.remat,
        scan_layers=config.training.scan_layers,
    )
    y_BTD = stagformer.readout(config.model, params, outputs.stacks)
    # Cast here, once: inside the chunks the whole tied embedding would be read and cast again for each of them.
    embedding_VD = params["embedding"].astype(y_BTD.dtype)

    def chunk_nats(y_D: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        logits_V = stagformer.logits({"embedding": embedding_VD}, y_D)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits_V, targets) * weights)

    chunks = config.training.loss_chunks
    tokens = (y_BTD, batch["targets"], batch["loss_weights"])
    if chunks == 1:
        return chunk_nats(*tokens)
    split = jax.tree.map(lambda leaf: leaf.reshape(chunks, -1, *leaf.shape[2:]), tokens)
    remembered = jax.checkpoint(chunk_nats)  # only y is kept for the backward pass, never a chunk's logits
    return jax.lax.scan(lambda nats, chunk: (nats + remembered(*chunk), None), jnp.zeros(()), split)[0]


def num_bytes(batch: Batch, byte_lengths_V: jax.Array) -> jax.Array:
    """Return the UTF-8 bytes of the text behind a batch's targets."""
    return jnp.sum(byte_lengths_V[batch["targets"]] * batch["loss_weights"])


def _accumulate(
    gradient_of: Callable[[Params, Batch], tuple[jax.Array, Params]], params: Params, batch: Batch, parts: int
) -> tuple[jax.Array, Params]:
    """Sum loss and gradient over `parts` equal parts of the batch, one after the other."""
    split = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)

    def add(total: tuple, part: Batch) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, gradient_of(params, part)), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return jax.lax.scan(add, (jnp.zeros(()), zero), split)[0]
