"""Every experiment at full size, traced and never run: its training step takes a batch and returns its own state."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from stagjax.experiment import load_config
from stagjax.training.state import abstract_state
from stagjax.training.step import make_train_step


def variants():
    for corpus in ("stdlib", "pile"):
        spec = importlib.util.spec_from_file_location(corpus, f"experiments/{corpus}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from (f"experiments/{corpus}.py:{name}" for name in module.VARIANTS)


@pytest.mark.parametrize("spec", list(variants()))
def test_the_training_step_of_every_experiment_can_be_traced_at_full_size(spec):
    config = load_config(spec)
    shape = (config.training.global_batch, config.data.row_length)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("inputs", "targets", "positions", "segment_ids")}
    batch["loss_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = abstract_state(config)
    lengths_V = jax.ShapeDtypeStruct((config.model.vocab_size,), jnp.float32)
    after, metrics = jax.eval_shape(make_train_step(config), state, batch, lengths_V)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert describe(after) == describe(state)
    assert {metric.shape for metric in metrics.values()} == {()}
