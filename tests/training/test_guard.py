"""The guard in the training step: what it calls a spike, and what a skipped update leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stagjax.config import Config, DataConfig, TrainingConfig
from stagjax.data.loader import RowLoader
from stagjax.data.packing import pack
from stagjax.data.vocabulary import EOS
from stagjax.training.guard import ENOUGH, WINDOW, init_guard, judge
from stagjax.training.optimizer import learning_rate_schedule
from stagjax.training.state import create_state
from stagjax.training.step import make_train_step
from tests.variants import tiny

BYTES = np.ones(61, np.float32)


def verdicts(values, training, norms=None):
    """Return (spike, skip) of each loss, and the guard at the end."""
    step = jax.jit(lambda guard, loss, norm: judge(training, guard, loss, norm))
    guard, found = init_guard(), []
    for loss, norm in zip(values, norms or [1.0] * len(values), strict=True):
        guard, verdict = step(guard, jnp.float32(loss), jnp.float32(norm))
        found.append((bool(verdict.spike), bool(verdict.skip)))
    return found, guard


def expected_spikes(losses, threshold):
    """The definition once more, in NumPy: only good steps count, and only the newest of them."""
    good, spikes = [], []
    for loss in losses:
        recent = np.sort(np.float32(good[-WINDOW:]))
        spike = False
        if len(good) >= ENOUGH:
            lower = lambda row: np.sort(row)[(len(row) - 1) // 2]
            median = lower(recent)
            spread = max(np.float32(1.4826) * lower(np.abs(recent - median)), np.float32(0.01) * abs(median))
            spike = bool(loss > median + np.float32(threshold) * spread)
        spikes.append(spike)
        if not spike:
            good.append(np.float32(loss))
    return spikes


@pytest.mark.parametrize("seed", range(3))
def test_a_spike_is_what_lies_far_above_the_median_of_recent_good_steps(seed):
    draw = np.random.default_rng(seed)
    losses = 5.0 * 0.995 ** np.arange(300) + 0.1 * draw.standard_normal(300)
    losses[[10, 40, 41, 200, 299]] += 8.0
    losses = np.float32(losses)
    want = expected_spikes(losses, 10.0)
    assert np.flatnonzero(want).tolist() == [40, 41, 200, 299]
    found, guard = verdicts(losses.tolist(), TrainingConfig(spikes="rollback"))
    assert found == [(spike, False) for spike in want]
    assert int(guard["good"]) == 296


def test_either_value_can_spike_and_none_turns_the_judgement_off():
    ones = [1.0] * ENOUGH
    assert verdicts([*ones, 1.0], TrainingConfig(spikes="skip"), [*ones, 1.2])[0][-1] == (True, True)
    assert verdicts([*ones, 1.2], TrainingConfig(spikes="skip"), [*ones, 1.0])[0][-1] == (True, True)
    assert verdicts([*ones, 1.07], TrainingConfig(spikes="skip"))[0][-1] == (False, False)
    assert verdicts([*ones, 1.07], TrainingConfig(spikes="skip", spike_threshold=6.0))[0][-1] == (True, True)
    assert verdicts([*ones, 99.0], TrainingConfig(spikes="none", nonfinite="skip"))[0][-1] == (False, False)
    assert verdicts([*ones[:-1], 99.0], TrainingConfig(spikes="skip"))[0][-1] == (False, False)


def test_what_is_not_finite_is_no_spike_and_never_enters_the_statistics():
    losses = [1.0] * 40 + [float("nan"), float("inf"), 1.0, 5.0, float("nan")]
    found, guard = verdicts(losses, TrainingConfig(spikes="skip", nonfinite="skip"))
    assert found[40:] == [(False, True), (False, True), (False, False), (True, True), (False, True)]
    assert (int(guard["skipped"]), int(guard["skipped_in_a_row"]), int(guard["good"])) == (4, 2, 41)
    assert np.isfinite(guard["recent"]).all()
    found, guard = verdicts(losses, TrainingConfig(spikes="stop", nonfinite="rollback"))
    assert not any(skip for _, skip in found)
    assert int(guard["skipped"]) == 0


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    documents = [np.append(draw.integers(3, 61, draw.integers(1, 40)), EOS) for _ in range(30)]
    return RowLoader(pack(documents, 16), 8, seed=0).batch(0)


def test_a_skipped_update_leaves_parameters_and_moments_and_advances_step_and_schedule(batch):
    training = TrainingConfig(global_batch=8, nonfinite="skip", warmup_steps=10)
    config = Config(tiny(), DataConfig(row_length=16), training)
    plain = Config(tiny(), DataConfig(row_length=16), dataclasses.replace(training, nonfinite="stop"))
    step, unguarded = jax.jit(make_train_step(config)), jax.jit(make_train_step(plain))
    bad = batch | {"loss_weights": np.full_like(batch["loss_weights"], np.nan)}

    good, _ = step(create_state(config), batch, BYTES)
    same, _ = unguarded(create_state(config), batch, BYTES)
    jax.tree.map(np.testing.assert_array_equal, good, same)

    after, metrics = step(good, bad, BYTES)
    moments = lambda state: [optax.tree.get(state["opt_state"], name) for name in ("mu", "nu")]
    jax.tree.map(np.testing.assert_array_equal, (after["params"], moments(after)), (good["params"], moments(good)))
    assert int(after["step"]) == 2
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)

    # The rate of the third step is that of the third step, skipped updates or not: Adam's first step is +-rate.
    schedules = [
        int(leaf.count)
        for leaf in jax.tree.leaves(
            after["opt_state"], is_leaf=lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)
        )
        if isinstance(leaf, optax.ScaleByScheduleState)
    ]
    assert schedules == [2]
    _, metrics = step(after, batch, BYTES)
    assert float(metrics["learning_rate"]) == pytest.approx(float(learning_rate_schedule(training)(2)))
    assert int(metrics["skipped_in_a_row"]) == 0

    broken, _ = unguarded(good, bad, BYTES)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken["params"]))
