"""The training step: what changes its result, and what must not."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stagjax.config import Config, DataConfig, TrainingConfig
from stagjax.data.loader import RowLoader
from stagjax.data.packing import pack
from stagjax.data.vocabulary import EOS
from stagjax.experiment import load_config
from stagjax.model import stagformer
from stagjax.model.accounting import training_memory
from stagjax.training import step as step_module
from stagjax.training.optimizer import decayed, learning_rate_schedule, make_optimizer
from stagjax.training.state import abstract_state, create_state
from stagjax.training.step import make_train_step, sum_nats
from tests.variants import VARIANTS, tiny

BYTES = np.ones(61, np.float32)
BYTES[:3] = 0


def config_of(model=None, **training):
    return Config(model or tiny(), DataConfig(row_length=16), TrainingConfig(**{"global_batch": 8, **training}))


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    documents = [np.append(draw.integers(3, 61, draw.integers(1, 40)), EOS) for _ in range(30)]
    return RowLoader(pack(documents, 16), 8, seed=0).batch(0)


@pytest.fixture(scope="module")
def after_one_step(batch):
    """The state after one step of the plain config, and the step's metrics."""
    state, (metrics,) = run_steps(config_of(), batch, 1)
    return state, metrics


def run_steps(config, batch, steps=3):
    state, losses = create_state(config), []
    step = jax.jit(make_train_step(config))
    for _ in range(steps):
        state, metrics = step(state, batch, BYTES)
        losses.append(metrics)
    return state, losses


def largest_difference(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4},
        {"remat": "layer"},
        {"scan_layers": False},
        {"loss_chunks": 4},
        {"accumulation": 2, "loss_chunks": 8},
    ],
)
def test_what_saves_memory_does_not_change_the_gradient(batch, after_one_step, changes):
    # One step of plain gradient descent would hide nothing; Adam's first step hides scale, so compare gradients.
    (state, metrics), (other, (found,)) = after_one_step, run_steps(config_of(**changes), batch, 1)
    assert found["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert found["gradient_norm"] == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)
    moments = lambda s: optax.tree.get(s["opt_state"], "mu")
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moments(state)))
    assert largest_difference(moments(state), moments(other)) < 1e-5 * scale
    assert jax.tree.structure(state["params"]) == jax.tree.structure(other["params"])


def test_padding_weighs_nothing_and_every_token_weighs_the_same(batch):
    config = config_of()
    params = create_state(config)["params"]
    nats = sum_nats(config, params, batch)
    padded = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in batch.items()}
    assert sum_nats(config, params, padded) == pytest.approx(float(nats), rel=1e-6)
    rows = [float(sum_nats(config, params, {n: a[r : r + 1] for n, a in batch.items()})) for r in range(8)]
    assert sum(rows) == pytest.approx(float(nats), rel=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    """By hand, on one document: targets are the inputs one step later, the first input is BOS, the last target EOS."""
    config = config_of()
    params = create_state(config)["params"]
    batch = RowLoader(pack([np.array([7, 8, 9, EOS])], 16), 1, seed=0).batch(0)
    logits_BTV = _logits(config.model, params, jnp.asarray([[1, 7, 8, 9]]))
    wanted = -sum(jax.nn.log_softmax(logits_BTV[0, t])[target] for t, target in enumerate([7, 8, 9, EOS]))
    assert float(sum_nats(config, params, batch)) == pytest.approx(float(wanted), rel=1e-5)


def _logits(model, params, tokens_BT):
    from stagjax.decoding.reference import sequential_logits

    return sequential_logits(model, params, tokens_BT)


def test_metrics_are_what_their_names_say(batch):
    config = config_of(warmup_steps=2, learning_rate=1e-2, steps=10)
    _, (first, second, third) = run_steps(config, batch)
    assert float(first["tokens"]) == batch["loss_weights"].sum()
    nats = float(sum_nats(config, create_state(config)["params"], batch))
    assert float(first["loss"]) == pytest.approx(nats / batch["loss_weights"].sum(), rel=1e-5)
    with_bytes = (batch["targets"] >= 3).sum()
    assert float(first["bits_per_byte"]) == pytest.approx(
        float(first["loss"] * first["tokens"]) / np.log(2) / with_bytes, rel=1e-5
    )
    rates = [5e-3, 1e-2, 1e-3 + 9e-3 * (1 + np.cos(np.pi / 8)) / 2]
    assert [float(m["learning_rate"]) for m in (first, second, third)] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["baseline", "shared", "separate_3_linear", "window_1", "parallel"])
def test_a_batch_can_be_learnt_by_heart(batch, name):
    config = config_of(VARIANTS[name], warmup_steps=1, learning_rate=3e-2, steps=60)
    _, metrics = run_steps(config, batch, 60)
    assert float(metrics[-1]["loss"]) < 0.6 * float(metrics[0]["loss"])


def test_decay_acts_on_matrices_other_than_the_embeddings():
    params = stagformer.abstract_params(tiny(combine="linear"))
    mask = {
        jax.tree_util.keystr(path, simple=True, separator="/"): on
        for path, on in jax.tree.leaves_with_path(decayed(params))
    }
    assert {name for name, on in mask.items() if not on} == {
        "embedding",
        "position_embedding",
        "combine",
        "out_norm/scale",
        "blocks/self_norm/scale",
        "blocks/mlp_norm/scale",
        "cross/norm/scale",
    }
    assert mask["blocks/mlp/gate"] and mask["cross/attention/out"]
    config = TrainingConfig(weight_decay=0.5, learning_rate=1.0, warmup_steps=0, steps=10)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    assert float(updates["blocks"]["mlp"]["gate"].min()) == pytest.approx(-0.5)
    assert float(jnp.abs(updates["embedding"]).max()) == 0


def rates_of(**training):
    training = TrainingConfig(**training)
    return [float(learning_rate_schedule(training)(done)) for done in range(training.steps)]


def test_the_schedule_reaches_its_peak_with_the_warm_up_and_its_end_with_the_run():
    rates = rates_of(learning_rate=2.0, warmup_steps=10, steps=110)
    assert [rates[step - 1] for step in (1, 5, 9, 10, 60)] == pytest.approx([0.2, 1, 1.8, 2, 1.1])
    assert (max(rates), rates[-1]) == (2.0, np.float32(0.2))
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize(
    ("warmup", "steps", "wanted"),
    [
        (4, 4, [0.5, 1, 1.5, 2]),
        (1, 1, [2]),
        (0, 1, [0.2]),
        (0, 3, [2, 1.1, 0.2]),
        (1, 3, [2, 1.1, 0.2]),
        (2, 3, [1, 2, 0.2]),
    ],
)
def test_a_run_may_be_all_warm_up_or_have_none(warmup, steps, wanted):
    assert rates_of(learning_rate=2.0, warmup_steps=warmup, steps=steps) == pytest.approx(wanted)


def test_the_last_step_of_ten_takes_a_tenth_of_the_peak():
    assert rates_of(learning_rate=1.0, warmup_steps=2, steps=10)[-1] == np.float32(0.1)


def test_runs_of_earlier_builds_keep_their_rates():
    earlier = json.loads(pathlib.Path("tests/data/earlier_build.json").read_text())
    schedule = learning_rate_schedule(Config.from_dict(earlier["config"]).training)
    assert [float(schedule(done)) for done in range(6)] == earlier["learning_rates"]


def test_a_seed_decides_the_parameters():
    first, same, other = (create_state(config_of(seed=seed))["params"]["embedding"] for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_float32_parameters_stay_float32_under_bfloat16_compute(batch):
    config = config_of(dataclasses.replace(tiny(), compute_dtype="bfloat16"))
    state, metrics = run_steps(config, batch, 1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state["params"])} == {"float32"}
    assert metrics[0]["loss"].dtype == jnp.float32


@pytest.mark.parametrize("changes", [{"training.remat": "layer"}, {"training.global_batch": 16}])
@pytest.mark.parametrize("variant", ["baseline_6", "separate_2x3"])
def test_the_memory_estimate_is_near_what_the_compiler_allocates(variant, changes):
    config = load_config(f"experiments/stdlib.py:{variant}", [f"{name}={value}" for name, value in changes.items()])
    shape = (config.training.global_batch, config.data.row_length)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("inputs", "targets", "positions", "segment_ids")}
    batch["loss_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    step = jax.jit(make_train_step(config), donate_argnums=0)
    compiled = step.lower(abstract_state(config), batch, jax.ShapeDtypeStruct((259,), jnp.float32)).compile()
    used = compiled.memory_analysis()
    allocated = used.argument_size_in_bytes + used.temp_size_in_bytes
    assert 1 / 1.5 < sum(training_memory(config).values()) / allocated < 1.5


def test_the_hash_of_a_batch_depends_on_every_id_and_on_their_places(batch):
    whole = {int(step_module._batch_hash(batch))}
    swapped = np.arange(8)
    swapped[[0, 1]] = [1, 0]
    whole.add(int(step_module._batch_hash({name: leaf[swapped] for name, leaf in batch.items()})))
    for name in ("inputs", "targets"):
        changed = batch[name].copy()
        changed[7, 15] += 1
        whole.add(int(step_module._batch_hash(batch | {name: changed})))
        whole.add(int(step_module._batch_hash(batch | {name: np.roll(batch[name], 1, axis=1)})))
    assert len(whole) == 6
    metrics = run_steps(config_of(), batch, 1)[1][0]
    assert int(metrics["batch_hash"]) == int(step_module._batch_hash(batch))
