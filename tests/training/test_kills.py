"""A run killed at random moments ends as the unbroken one does, under all policies for bad steps.

    pytest -m slow tests/training/test_kills.py

kills ten times under each policy (some five minutes on 2 cores). The moments come of a seed that is printed, and that
KILL_SEED=N sets.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from stagjax.checkpoints.saving import Checkpoints
from stagjax.reporting.metrics import read_metrics
from tests.compiling import environment
from tests.runs import TINY, write_corpus
from tests.waits import HANG

STEPS = 60
FIELDS = TINY | {
    "training.steps": STEPS,
    "training.learning_rate": 1e-3,
    "training.global_batch": 4,
    "training.log_every": 1,
    "training.validate_every": 8,
    "training.checkpoint_every": 5,
}
# Batches 3 and 13 are not finite, 45 and 50 are spikes; reading takes long enough for kills to hit any step.
FAULTS = {"nonfinite": [3, 13], "spike": [45, 50], "slow_seconds": 0.02}
POLICIES = {
    "skip": {"training.nonfinite": "skip", "training.spikes": "skip"},
    "rollback": {"training.nonfinite": "rollback", "training.spikes": "rollback"},
    "both": {"training.nonfinite": "skip", "training.spikes": "rollback"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    write_corpus(folder)
    return folder


def start(folder, workdir, policy):
    fields = FIELDS | {"data.path": folder / "corpus"} | POLICIES[policy]
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    line = ["train", "--config=experiments/stdlib.py:shared_2x3,runlocal", f"--workdir={workdir}", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.faults", json.dumps(FAULTS), *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finish(process):
    _, err = process.communicate(timeout=HANG)
    return process.returncode, err


def steps_done(workdir):
    file = pathlib.Path(workdir, "metrics.jsonl")
    lines = file.read_text().splitlines()[:-1] if file.exists() else []
    return max((json.loads(line)["step"] for line in lines if '"train/loss"' in line), default=0)


def kill_at_random(process, workdir, draw):
    """Kill a run in its first seconds, or a little after it has reached a step; return what it was doing."""
    if draw.random() < 0.2:
        seconds = draw.uniform(0.0, 4.0)
        time.sleep(seconds)
        moment = f"{seconds:.2f} s after its start"
    else:
        # The last step may be written already, and not be saved.
        step, seconds = draw.randrange(min(steps_done(workdir), STEPS - 1), STEPS), draw.uniform(0.0, 0.05)
        deadline = time.monotonic() + HANG
        while process.poll() is None and steps_done(workdir) < step and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        moment = f"{1000 * seconds:.0f} ms after step {step} was written"
    process.kill()
    finish(process)
    return f"killed {moment}, at step {steps_done(workdir)}"


def outcome(workdir):
    """Everything in which two runs could differ that should not."""
    metadata = Checkpoints(workdir, 1, read_only=True).read_metadata(STEPS)
    steps = [line["step"] for line in read_metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
    losses = [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]
    return metadata["fingerprint"], metadata["skipped_batches"], losses


def check(folder, policy, kills):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    draw = random.Random(seed)
    unbroken, killed = folder / f"{policy}_{kills}_unbroken", folder / f"{policy}_{kills}"
    status, err = finish(start(folder, unbroken, policy))
    assert status == 0, err
    for _ in range(kills):
        print(kill_at_random(start(folder, killed, policy), killed, draw))
    status, err = finish(start(folder, killed, policy))
    assert status == 0, err
    assert outcome(killed) == outcome(unbroken)
    return outcome(unbroken)


def test_killed_three_times_at_random_a_run_ends_as_the_unbroken_one(folder):
    _, skipped, losses = check(folder, "both", 3)
    # Batch 45 is bad for step 46; from then on step n reads batch n, so step 50 meets batch 50. Saved was step 45.
    assert skipped == [[45, 46], [46, 51]]
    assert losses[3] is None


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_killed_ten_times_at_random_a_run_ends_as_the_unbroken_one(folder, policy):
    check(folder, policy, 10)
