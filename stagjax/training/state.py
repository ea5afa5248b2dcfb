"""The training state: one dict of arrays that a checkpoint holds whole."""

from typing import Any

import jax
import jax.numpy as jnp

from stagjax.config import Config
from stagjax.model.stagformer import init_params
from stagjax.training.optimizer import make_optimizer

# {"params": ..., "opt_state": ..., "step": int32}; the step number is also the position in the data.
TrainState = dict[str, Any]


def init_state(config: Config) -> TrainState:
    """Return the state before the first step; `training.seed` decides the parameters."""
    params = init_params(config.model, jax.random.key(config.training.seed))
    return {
        "params": params,
        "opt_state": make_optimizer(config.training).init(params),
        "step": jnp.zeros((), jnp.int32),
    }


def create_state(config: Config) -> TrainState:
    """Return `init_state` computed by one compiled program."""
    # On a CPU, optimising a program that runs once for 0.1 s takes 12 s instead of 2 (separate_2x3,runlocal).
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda: init_state(config), compiler_options=options)()


def abstract_state(config: Config) -> TrainState:
    """Return the state's shapes, dtypes and (single-device) shardings; nothing is allocated."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: init_state(config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
