"""A pipeline of slices computes what stacks one after the other do: loss and every gradient, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.mesh import training_mesh
from stagjax.model import pipelining, stagformer
from stagjax.model.gathering import gather_embeddings
from stagjax.model.kernels import row_attention
from stagjax.model.pipelining import bubble, num_microbatches
from stagjax.sharding import parameter_shardings
from tests.variants import VARIANTS, params_of, tiny, tokens_of

ROWS, LENGTH = 48, 12

# Every kind of model, mesh, number of microbatches and form of the loop over layers.
CASES = {
    "separate": (MeshConfig(fsdp=2, stack=2, tensor=2), 4, {}),
    "separate_3_linear": (MeshConfig(fsdp=2, stack=3), 8, {}),
    "shared": (MeshConfig(fsdp=4, stack=2), 2, {"scan_layers": False}),
    "shared_4_linear": (MeshConfig(fsdp=2, stack=4), 2, {"remat": "layer"}),
    "window_1": (MeshConfig(data=2, fsdp=2, stack=2), 1, {}),
    "window_5": (MeshConfig(data=4, stack=2), 4, {"remat": "layer", "scan_layers": False}),
    "parallel": (MeshConfig(data=2, stack=2, tensor=2), 8, {}),
    "lag_0": (MeshConfig(fsdp=2, stack=2, tensor=2), 8, {"remat": "layer"}),
    "lag_2": (MeshConfig(fsdp=4, stack=2), 4, {}),
    "grouped_query": (MeshConfig(stack=2, tensor=2), 16, {}),
    "everything": (MeshConfig(stack=4, tensor=2), 2, {}),
}


def rows_of(config):
    """Return tokens, positions and segments of rows of one to four documents and, in every second, padding."""
    draw = np.random.default_rng(0)
    segments_BT = np.sort(draw.integers(1, 5, (ROWS, LENGTH)), axis=1)
    segments_BT[::2, -3:] = 0
    starts_BT = np.array([[np.flatnonzero(row == segment)[0] for segment in row] for row in segments_BT])
    return tokens_of(config, ROWS, LENGTH), np.arange(LENGTH) - starts_BT, segments_BT


def in_turn(config, params, *rows, **options):
    return stagformer.readout(config, params, stagformer.forward(config, params, *rows, **options).stacks)


def loss_and_gradient(forward, config, params, mesh=None):
    """Return a weighted sum of y over the positions that are no padding, and its gradient."""
    rows = rows_of(config)
    weights_BTD = np.random.default_rng(1).normal(size=(ROWS, LENGTH, config.model_dim)) * (rows[2] > 0)[..., None]

    def loss(params):
        # As training does: XLA's partitioner of jax 0.12 cannot divide a lookup in a table that is divided itself.
        params = gather_embeddings(config.compute_dtype, params)
        return jnp.sum(forward(config, params, *rows) * weights_BTD)

    if mesh is None:
        return jax.jit(jax.value_and_grad(loss))(params)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, parameter_shardings(mesh, params))
        return jax.jit(jax.value_and_grad(loss))(params)


def mesh_of(sizes):
    others = sizes.data * (sizes.fsdp or 1) * sizes.stack * sizes.tensor
    return training_mesh(dataclasses.replace(sizes, fsdp=sizes.fsdp or 1), jax.devices()[:others])


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_stacks_in_turn(name):
    sizes, microbatches, options = CASES[name]
    with jax.enable_x64(True):
        config = dataclasses.replace(VARIANTS[name], compute_dtype="float64", vocab_size=64)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_of(config))
        pipelined = functools.partial(pipelining.forward, microbatches=microbatches, **options)
        found = loss_and_gradient(pipelined, config, params, mesh_of(sizes))
        wanted = loss_and_gradient(in_turn, config, params)
        for (path, leaf), same in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
            scale = float(jnp.abs(same).max())
            assert scale > 0
            np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-12 * scale, err_msg=jax.tree_util.keystr(path))


def test_an_idle_slice_computes_nothing_infinite_and_nothing_that_counts():
    """Three stacks and one microbatch: two slices of three idle in every round."""
    config = tiny(num_stacks=3, norm_eps=1e-30)
    found = loss_and_gradient(
        functools.partial(pipelining.forward, microbatches=1), config, params_of(config), mesh_of(MeshConfig(stack=3))
    )
    wanted = loss_and_gradient(in_turn, config, params_of(config))
    for leaf, same in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-5 * float(jnp.abs(same).max()))


def test_kernels_run_on_each_slices_rows_and_heads():
    """A fused kernel is divided by `jax.shard_map`, here under the map over stacks."""
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 2, 128, 4, 8)), jnp.float32) for _ in range(3))
    segments_PBT = jnp.asarray(np.sort(draw.integers(1, 4, (2, 2, 128)), axis=-1))

    def heads(kernel, q, k, v, segments):
        return row_attention(q, k, v, segments, None, kernel, interpret=kernel == "splash")

    wanted = jax.vmap(functools.partial(heads, "xla"))(q, k, v, segments_PBT)
    with jax.set_mesh(training_mesh(MeshConfig(fsdp=2, stack=2, tensor=2))):
        program = jax.jit(jax.vmap(functools.partial(heads, "splash"), spmd_axis_name="stack"))
        found = program(q, k, v, segments_PBT)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_microbatches_are_the_most_that_divide_a_devices_rows_up_to_four_a_stack():
    def count(mesh, rows, **training):
        training = TrainingConfig(global_batch=rows, **training)
        return num_microbatches(
            Config(tiny(num_stacks=mesh.stack), DataConfig(row_length=16), training, mesh), mesh_of(mesh)
        )

    assert count(MeshConfig(fsdp=4, stack=2), 64) == 8
    assert count(MeshConfig(fsdp=4, stack=2), 64, accumulation=4) == 4
    assert count(MeshConfig(data=2, fsdp=2, stack=2), 40) == 5  # of 10 rows
    assert count(MeshConfig(fsdp=2, stack=4), 64) == 16
    assert count(MeshConfig(fsdp=2, stack=2), 64, microbatches=2) == 2


def test_the_bubble_is_the_share_of_rounds_in_which_a_slice_has_no_microbatch():
    for P, M in ((1, 4), (2, 8), (4, 3), (3, 1)):
        rounds = M + P - 1
        for s in range(P):
            assert sum(not 0 <= r - s < M for r in range(rounds)) / rounds == bubble(P, M)
