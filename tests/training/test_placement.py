"""Training on a mesh of eight devices: the same run as on one, in eight parts, and only weights on the way."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from stagjax.checkpoints.saving import Checkpoints
from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.data.loader import RowLoader
from stagjax.data.packing import pack
from stagjax.data.vocabulary import EOS
from stagjax.errors import UserError
from stagjax.fingerprint import fingerprint
from stagjax.mesh import training_mesh
from stagjax.model.gathering import gather_embeddings, gather_layer, look_up
from stagjax.sharding import logical_axes, parameter_path, spec
from stagjax.training.loop import train
from stagjax.training.state import abstract_state, create_state
from stagjax.training.step import training_program, validation_program
from tests.runs import write_corpus
from tests.variants import tiny

ROWS, LENGTH, STEPS = 16, 20, 20

# Every mesh, and another variant on each. 61 pieces do not divide over eight devices, 64 do.
CASES = {
    "fsdp": (MeshConfig(), tiny(), {"remat": "layer", "loss_chunks": 5}),
    "data_fsdp": (MeshConfig(data=2), tiny(vocab_size=64, shared_weights=True, cross_window=5, lag=2), {}),
    "fsdp_tensor": (MeshConfig(tensor=2), tiny(vocab_size=64, combine="linear", num_kv_heads=2), {"remat": "layer"}),
    "data_fsdp_tensor": (
        MeshConfig(data=2, tensor=2),
        tiny(vocab_size=64, cross_window=1, cross_attention="parallel"),
        {"accumulation": 2, "loss_chunks": 4},
    ),
}


def case(name):
    mesh, model, training = CASES[name]
    training = {"global_batch": ROWS, "steps": STEPS, "warmup_steps": 2, "learning_rate": 1e-2} | training
    return Config(model, DataConfig(row_length=LENGTH), TrainingConfig(**training), mesh)


def one_device():
    return training_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def loader():
    draw = np.random.default_rng(0)
    documents = [np.append(draw.integers(3, 61, draw.integers(1, 40)), EOS) for _ in range(100)]
    return RowLoader(pack(documents, LENGTH), ROWS, seed=0)


def placed(state, config, mesh):
    """Return a state (on the host, or of any mesh) on `mesh`."""
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, abstract_state(config, mesh))


def run(config, mesh, loader):
    step, _ = training_program(config, mesh)
    state, losses, norms = placed(started(config), config, mesh), [], []
    lengths_V = np.ones(config.model.vocab_size, np.float32)
    for t in range(STEPS):
        before = state
        state, metrics = step(before, loader.batch(t), lengths_V)
        assert before["params"]["embedding"].is_deleted(), "its memory is the new state's"
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    return state, losses, norms


@functools.cache
def started(config):
    return jax.device_get(create_state(config))


@pytest.fixture(scope="module")
def runs(loader):
    """Each case on its mesh, run once for all tests of this module."""
    return functools.cache(lambda name: run(case(name), training_mesh(case(name).mesh), loader))


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_trains_as_one_device_does(name, loader, runs):
    state, losses, norms = runs(name)
    wanted_state, wanted, wanted_norms = run(case(name), one_device(), loader)
    assert wanted[-1] < 0.9 * wanted[0]
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert norms == pytest.approx(wanted_norms, rel=1e-5)  # Adam hides the scale of a gradient, its norm does not
    for leaf, same in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(wanted_state["params"]), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-5 * float(jnp.abs(same).max()))


@pytest.mark.parametrize("name", ["fsdp", "data_fsdp_tensor"])
def test_parameters_and_both_moments_are_divided_by_the_table(name, runs):
    state, *_ = runs(name)
    mesh = training_mesh(case(name).mesh)
    for tree in (state["params"], *(optax.tree.get(state["opt_state"], moment) for moment in ("mu", "nu"))):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            by_table = NamedSharding(mesh, spec(logical_axes(parameter_path(path)), "training"))
            shapes = [shard.data.shape for shard in leaf.addressable_shards]
            assert shapes == 8 * [by_table.shard_shape(leaf.shape)], parameter_path(path)
        gate, query = tree["blocks"]["mlp"]["gate"], tree["blocks"]["self_attention"]["query"]
        divided = {"fsdp": ((2, 2, 2, 24), (2, 2, 2, 4, 4)), "data_fsdp_tensor": ((2, 2, 8, 12), (2, 2, 8, 2, 4))}
        assert (gate.addressable_shards[0].data.shape, query.addressable_shards[0].data.shape) == divided[name]


def test_a_new_state_is_the_same_on_every_mesh():
    config = case("data_fsdp_tensor")
    state = create_state(config, training_mesh(config.mesh))
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, training_mesh(config.mesh)))
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, wanted))
    assert fingerprint(state) == fingerprint(create_state(config))


def test_a_checkpoint_of_one_mesh_is_restored_on_any_bit_for_bit(tmp_path, runs):
    config = case("data_fsdp_tensor")
    state, *_ = runs("data_fsdp_tensor")
    saved = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(STEPS, state, config.to_dict(), {}, None)
    checkpoints.wait()
    for other in (one_device(), training_mesh(MeshConfig()), training_mesh(MeshConfig(data=4, tensor=2))):
        abstract = abstract_state(config, other)
        restored, _ = checkpoints.restore(abstract)
        assert fingerprint(restored) == fingerprint(saved)
        for leaf, like, same in zip(*map(jax.tree.leaves, (restored, abstract, saved)), strict=True):
            assert leaf.sharding == like.sharding
            assert np.asarray(leaf).tobytes() == same.tobytes()
    checkpoints.close()


# What a collective of an optimised HLO text returns, e.g. "%all-reduce.7 = (f32[16,24]{1,0}, f32[]) all-reduce(".
COLLECTIVE = re.compile(r" = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text):
    """Return (kind, number of elements, whether in a loop) of every array that a collective returns."""
    loops = {body for line in text.splitlines() for body in re.findall(r" while\(.*body=%?([\w.-]+)", line)}
    found, computation = [], ""
    for line in text.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = heading[1]
        if match := COLLECTIVE.search(line):
            for dims in re.findall(r"\w\d+\[([\d,]*)\]", match[1]):
                size = math.prod(int(dim) for dim in dims.split(",") if dim)
                found.append((match[2], size, computation in loops))
    return found


@pytest.mark.parametrize(
    ("mesh", "changes"), [(MeshConfig(), {"loss_chunks": 4}), (MeshConfig(data=2), {"accumulation": 2})]
)
def test_fsdp_sends_weights_and_their_gradients_never_activations(mesh, changes):
    config = case("fsdp")
    training = dataclasses.replace(config.training, **{"loss_chunks": 1, **changes})
    config = dataclasses.replace(config, model=tiny(vocab_size=72, layers_per_stack=3), training=training, mesh=mesh)
    step, arguments = training_program(config, training_mesh(mesh))
    assert {leaf.sharding.shard_shape(leaf.shape) for leaf in arguments[1].values()} == {(ROWS // 8, LENGTH)}
    found = collectives(step.lower(*arguments).compile().as_text())
    D, F, V, rows, fsdp = 16, 24, 72, ROWS // training.accumulation, 8 // mesh.data
    attention, mlp, table, positions = D * D, D * F, V * D, 64 * D
    weights = {attention, mlp, table, positions}
    parts = {size // ways for size in weights for ways in (fsdp, fsdp**2)}  # as all-to-alls and sums of parts are
    assert not (weights | parts) & {rows * LENGTH // n * width for n in (1, 2, 4, 8) for width in (1, D, F, V)}
    # Norms and sums are small.
    assert weights <= {size for _, size, _ in found if size > D} <= weights | parts
    gathers = [(size, looped) for kind, size, looped in found if kind == "all-gather"]
    sums = [size for kind, size, _ in found if kind in ("all-reduce", "reduce-scatter")]
    # One layer's matrices in the loops over layers, forward and (for remat) backward, of two stacks; summed once.
    assert gathers.count((mlp, True)) == 3 * 2 * 2 and gathers.count((mlp, False)) == 0
    assert sums.count(mlp) == 3 * 2
    # The tied embedding comes once a step and its gradient goes once, not once a chunk.
    assert [size for size, _ in gathers].count(table) == sums.count(table) == 1


def test_a_layers_weights_are_whole_in_the_compute_dtype_and_their_gradients_divided_by_the_table():
    config = case("data_fsdp_tensor")
    mesh = training_mesh(config.mesh)
    params = placed(started(config), config, mesh)["params"]
    layer = tuple(jax.tree.map(lambda leaf: leaf[0, 0], params[part]) for part in ("blocks", "cross"))
    gather = functools.partial(gather_layer, "bfloat16")
    total = lambda *layer: sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(gather(*layer)))
    with jax.set_mesh(mesh):
        whole, gradient = jax.jit(gather)(*layer), jax.jit(jax.grad(total, argnums=(0, 1)))(*layer)
    for part, weights, gradients in zip(("blocks", "cross"), whole, gradient, strict=True):
        for path, weight in jax.tree_util.tree_leaves_with_path(weights):
            axes = logical_axes(f"{part}/{parameter_path(path)}")[2:]
            matrix = "model" in axes
            assert weight.dtype == (jnp.bfloat16 if matrix else jnp.float32)
            heads = NamedSharding(mesh, spec([None if axis == "model" else axis for axis in axes], "training"))
            assert weight.sharding.is_equivalent_to(heads, weight.ndim)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            axes = logical_axes(f"{part}/{parameter_path(path)}")[2:]
            assert leaf.dtype == jnp.float32
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec(axes, "training")), leaf.ndim)


def test_a_frequent_tokens_gradient_is_not_summed_in_the_compute_dtype():
    """1, 1000 times in each of eight groups of rows: a sum in bfloat16 would stay at 256."""
    config, params = tiny(compute_dtype="bfloat16"), started(case("fsdp"))["params"]

    def total(params):
        whole = gather_embeddings(config.compute_dtype, params)
        return jnp.sum(look_up(whole["embedding"], jnp.full((8, 1000), 7)), dtype=jnp.float32)

    with jax.set_mesh(training_mesh(MeshConfig())):
        gradient = jax.jit(jax.grad(total))(params)["embedding"]
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, np.where(np.arange(61) == 7, 8000.0, 0)[:, None] * np.ones(16))


def test_the_validation_step_is_the_same_on_a_mesh(loader, runs):
    state, *_ = runs("data_fsdp_tensor")
    config = case("data_fsdp_tensor")
    batch = {name: rows[: ROWS // 2] for name, rows in loader.batch(3).items()}
    lengths_V = np.arange(64, dtype=np.float32)
    sums = validation_program(config, training_mesh(config.mesh))[0](state["params"], batch, lengths_V)
    params = jax.device_get(state["params"])
    wanted = validation_program(config, one_device())[0](params, batch, lengths_V)
    assert sums.keys() == wanted.keys() and all(value.shape == (ROWS // 2,) for value in sums.values())
    for name, value in sums.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, err_msg=name)


def test_a_run_goes_on_on_another_mesh(tmp_path, capfd):
    write_corpus(tmp_path)
    config = dataclasses.replace(
        case("fsdp"),
        model=tiny(vocab_size=259, num_stacks=1, layers_per_stack=1),
        data=DataConfig(source="text", path=str(tmp_path / "corpus"), row_length=LENGTH),
        training=TrainingConfig(global_batch=ROWS, steps=4, warmup_steps=1, checkpoint_every=2, keep_last=9),
    )
    workdir = tmp_path / "run"
    whole = train(config, workdir)
    assert "training on 8 devices: mesh.data=1 x mesh.fsdp=8 x mesh.stack=1 x mesh.tensor=1" in capfd.readouterr().err
    (workdir / "checkpoints" / "4").rename(tmp_path / "4")
    again = train(dataclasses.replace(config, mesh=MeshConfig(data=2)), workdir)
    err = capfd.readouterr().err
    assert "mesh.data=2 x mesh.fsdp=4" in err and "going on from step 2" in err
    assert again.validation == pytest.approx(whole.validation, rel=1e-5)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(tensor=3), "mesh.tensor=3 = 3 does not divide the 8 devices"),
        (MeshConfig(data=2, fsdp=2), "= 4, but there are 8 devices"),
        (MeshConfig(tensor=2), "model.vocab_size=61 does not divide over mesh.tensor=2"),
        (MeshConfig(tensor=8), "model.num_heads=4 does not divide over mesh.tensor=8"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_written(mesh, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(case("fsdp"), mesh=mesh), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    batch = dataclasses.replace(case("fsdp").training, global_batch=12)
    with pytest.raises(UserError, match="12 rows do not divide over mesh.data=1 x mesh.fsdp=8; use a multiple of 8"):
        train(dataclasses.replace(case("fsdp"), training=batch), tmp_path / "run")
