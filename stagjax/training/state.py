"""The training state: one dict of arrays that a checkpoint holds whole."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax.config import Config, MeshConfig
from stagjax.mesh import training_mesh
from stagjax.model.stagformer import Params, init_params
from stagjax.sharding import parameter_shardings
from stagjax.training.guard import init_guard
from stagjax.training.optimizer import make_optimizer

# {"params": ..., "opt_state": ..., "step": int32, "guard": ...}; the step number, and the batches that were passed over
# (`stagjax.training.recovery`), are the position in the data.
TrainState = dict[str, Any]


def init_state(config: Config) -> TrainState:
    """Return the state before the first step; `training.seed` decides the parameters."""
    return state_around(config, init_params(config.model, jax.random.key(config.training.seed)))


def state_around(config: Config, params: Params) -> TrainState:
    """Return the state before the first step of a run that begins with these parameters."""
    return {
        "params": params,
        "opt_state": make_optimizer(config.training).init(params),
        "step": jnp.zeros((), jnp.int32),
        "guard": init_guard(),
    }


def create_state(config: Config, mesh: Mesh | None = None) -> TrainState:
    """Return `init_state` computed by one compiled program, placed on `mesh` (None: on the first device)."""
    # On a CPU, optimising a program that runs once for 0.1 s takes 12 s instead of 2 (separate_2x3,runlocal).
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return jax.jit(lambda: init_state(config), out_shardings=shardings, compiler_options=options)()


def abstract_state(config: Config, mesh: Mesh | None = None) -> TrainState:
    """Return the state's shapes, dtypes and shardings on `mesh` (None: the first device); nothing is allocated.

    A checkpoint is restored onto them, whatever mesh it was saved from.
    """
    if mesh is None:
        mesh = training_mesh(MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_state(config))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = parameter_shardings(mesh, shapes["params"])
    # The moments are divided as the parameters are that they belong to.
    opt_state = optax.tree.map_params(
        make_optimizer(config.training),
        lambda _, sharding: sharding,
        shapes["opt_state"],
        params,
        transform_non_params=lambda _: replicated,
    )
    guard = jax.tree.map(lambda _: replicated, shapes["guard"])
    shardings = {"params": params, "opt_state": opt_state, "step": replicated, "guard": guard}
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
