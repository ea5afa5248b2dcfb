"""Training over slices of the mesh: the same run as on one device, and only outputs on the way between slices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.bench import hlo
from stagjax.bench.collectives import collectives
from stagjax.bench.programs import train_program
from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.data.loader import RowLoader
from stagjax.data.packing import pack
from stagjax.data.vocabulary import EOS
from stagjax.errors import UserError
from stagjax.mesh import training_mesh
from stagjax.training.loop import train
from stagjax.training.state import abstract_state, create_state
from stagjax.training.step import training_program, validation_program
from tests.runs import write_corpus
from tests.variants import tiny

ROWS, LENGTH, STEPS = 16, 20, 20

CASES = {
    "separate": (MeshConfig(fsdp=2, stack=2, tensor=2), tiny(vocab_size=64), {"remat": "layer", "loss_chunks": 4}),
    "shared": (
        MeshConfig(fsdp=4, stack=2),
        tiny(vocab_size=64, shared_weights=True, cross_window=5, lag=2, combine="linear"),
        {"accumulation": 2, "microbatches": 1},
    ),
}


def case(name):
    mesh, model, training = CASES[name]
    # Adam's first step is +-rate for a gradient of any size, also one of rounding alone, unless epsilon outweighs it.
    fixed = {"global_batch": ROWS, "steps": STEPS, "warmup_steps": 2, "learning_rate": 1e-2, "epsilon": 1e-5}
    training = fixed | training
    return Config(model, DataConfig(row_length=LENGTH), TrainingConfig(**training), mesh)


@pytest.fixture(scope="module")
def loader():
    draw = np.random.default_rng(0)
    documents = [np.append(draw.integers(3, 61, draw.integers(1, 40)), EOS) for _ in range(100)]
    return RowLoader(pack(documents, LENGTH), ROWS, seed=0)


def one_device():
    return training_mesh(MeshConfig(), jax.devices()[:1])


def run(config, mesh, loader):
    step, _ = training_program(config, mesh)
    state = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding), create_state(config), abstract_state(config, mesh)
    )
    losses, norms = [], []
    for t in range(STEPS):
        state, metrics = step(state, loader.batch(t), np.ones(config.model.vocab_size, np.float32))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    return state, losses, norms


@pytest.mark.parametrize("name", CASES)
def test_slices_train_and_validate_as_one_device_does(name, loader):
    config, mesh = case(name), training_mesh(case(name).mesh)
    state, losses, norms = run(config, mesh, loader)
    wanted_state, wanted, wanted_norms = run(config, one_device(), loader)
    assert wanted[-1] < 0.9 * wanted[0]
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert norms == pytest.approx(wanted_norms, rel=1e-5)
    for leaf, same in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(wanted_state["params"]), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-5 * float(jnp.abs(same).max()))
    # A slice holds the layers of its own stack, or a copy of the shared ones; the moments likewise.
    for part, leaf in (
        ("gate", state["params"]["blocks"]["mlp"]["gate"]),
        ("scale", state["params"]["out_norm"]["scale"]),
    ):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}, part
    batch = {key: rows[: ROWS // config.training.accumulation] for key, rows in loader.batch(3).items()}
    lengths_V = np.arange(64, dtype=np.float32)
    sums = validation_program(config, mesh)[0](state["params"], batch, lengths_V)
    params = jax.device_get(state["params"])
    alone = validation_program(config, one_device())[0](params, batch, lengths_V)
    assert sums.keys() == alone.keys()
    for key, value in sums.items():
        np.testing.assert_allclose(value, alone[key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_slices_send_each_other_outputs_and_never_weights(remat):
    config = case("separate")
    training = dataclasses.replace(config.training, remat=remat, microbatches=4)
    config = dataclasses.replace(config, model=tiny(vocab_size=72, layers_per_stack=3), training=training)
    mesh = training_mesh(config.mesh)
    traceable = train_program(config, mesh)
    assert traceable.arguments[1]["inputs"].sharding.shard_shape((ROWS, LENGTH)) == (ROWS // 4, LENGTH)
    program = hlo.parse(traceable.function.lower(*traceable.arguments).compile().as_text())
    found = collectives(program, mesh.shape)
    M, D, L, P = 4, 16, 3, 2
    # One handoff a round there, and one of its gradient back, from each slice to its neighbour and not round.
    handoffs = [c for c in found if c.kind == "collective-permute"]
    assert [(c.axis, c.count, c.bytes) for c in handoffs] == 2 * [("stack", M + P - 1, ROWS // M // 2 * LENGTH * D * 4)]
    assert {pair for c in handoffs for pair in c.groups} == {(a, b) for a in range(8) for b in (a ^ 2,)}
    # Besides: embeddings to all slices, positions and segments; y of the last slice, and the gradients of both.
    rows = ROWS // 4 * LENGTH
    across = [c for c in found if "stack" in c.axis.split(",")]
    assert {c.bytes for c in across if c.kind == "all-gather"} <= {rows * 4, rows * D * 4}
    assert {c.kind for c in across} <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    assert all(c.count == 1 for c in across if c.kind != "collective-permute")
    # Weights are gathered along fsdp once for all rounds, and with rematerialisation in each round on the way back.
    gathers = {c.count for c in found if c.kind == "all-gather" and c.axis == "fsdp" and c.count > 1}
    assert gathers == ({L} if remat == "none" else {L, L * (M + P - 1)})


def test_a_run_goes_on_over_slices(tmp_path, capfd):
    write_corpus(tmp_path)
    config = Config(
        tiny(vocab_size=259, layers_per_stack=1),
        DataConfig(source="text", path=str(tmp_path / "corpus"), row_length=LENGTH),
        TrainingConfig(global_batch=ROWS, steps=4, warmup_steps=1, checkpoint_every=2, keep_last=9),
        MeshConfig(),
    )
    workdir = tmp_path / "run"
    whole = train(config, workdir)
    assert "pipelined" not in capfd.readouterr().err
    (workdir / "checkpoints" / "4").rename(tmp_path / "4")
    again = train(dataclasses.replace(config, mesh=MeshConfig(stack=2)), workdir)
    err = capfd.readouterr().err
    assert "mesh.fsdp=4 x mesh.stack=2" in err and "going on from step 2" in err
    assert "pipelined over 2 slices in 4 microbatches: each slice is idle for 20% of a step" in err
    assert again.validation == pytest.approx(whole.validation, rel=1e-5)


@pytest.mark.parametrize(
    ("mesh", "training", "message"),
    [
        (
            MeshConfig(stack=2),
            {"global_batch": 12},
            "12 rows do not divide over mesh.data=1 x mesh.fsdp=4 x mesh.stack=2",
        ),
        (
            MeshConfig(stack=2),
            {"microbatches": 3},
            "training.microbatches=3 does not divide the 4 rows of a device .16 over mesh.data=1 x mesh.fsdp=4.; "
            "use one of 1, 2, 4, or None",
        ),
    ],
)
def test_rows_that_do_not_divide_are_refused_before_anything_is_written(mesh, training, message, tmp_path):
    training = TrainingConfig(**{"global_batch": ROWS} | training)
    config = Config(tiny(vocab_size=64), DataConfig(row_length=LENGTH), training, mesh)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=message):
        train_program(config, training_mesh(mesh))
