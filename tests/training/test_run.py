"""Whole runs as processes: killed, told to stop, broken, and gone on with."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from stagjax.checkpoints.saving import Checkpoints
from stagjax.reporting.metrics import read_metrics
from tests.compiling import environment
from tests.runs import TINY, write_corpus
from tests.waits import HANG, eventually

STEPS = 12
FIELDS = TINY | {
    "training.steps": STEPS,
    "training.learning_rate": 1e-3,
    "training.global_batch": 4,
    "training.log_every": 1,
    "training.validate_every": 8,
    "training.checkpoint_every": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small corpus."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    return folder


def command(folder, workdir, **changes):
    fields = FIELDS | {"data.path": str(folder / "corpus")}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return [
        sys.executable,
        "-m",
        "stagjax",
        "train",
        "--config=experiments/stdlib.py:shared_2x3,runlocal",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def start(folder, workdir, limit=None, last=None, **changes):
    """Start a run; `last` is the step after which it waits for what is done to it."""

    def lower_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    line = command(folder, workdir, **changes)
    if last:
        line[2:3] = ["tests.training.faults", json.dumps({"waits": (last, str(folder / "never"))})]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lower_limit if limit else None,
    )


def finish(process):
    out, err = process.communicate(timeout=HANG)
    return process.returncode, out, err


def wait_for_step(process, workdir, step):
    reached = lambda: max(losses(workdir), default=0) >= step
    assert eventually(lambda: reached() or process.poll() is not None) and reached(), finish(process)


def result(workdir):
    return Checkpoints(workdir, 1, read_only=True).read_metadata(STEPS)["fingerprint"]


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line}


@pytest.fixture(scope="module")
def unbroken(folder):
    workdir = folder / "unbroken"
    status, out, err = finish(start(folder, workdir))
    assert status == 0, err
    assert "compiled in" in err
    assert f"step {STEPS}, validation loss" in out
    assert json.loads((workdir / "config.json").read_text())["training"]["steps"] == STEPS
    return workdir


def test_killed_at_any_moment_and_resumed_the_parameters_are_those_of_the_unbroken_run(folder, unbroken):
    workdir = folder / "killed"
    for step in (2, 9):
        process = start(folder, workdir, last=step)
        wait_for_step(process, workdir, step)
        process.kill()
        finish(process)
    status, _, err = finish(start(folder, workdir))
    assert status == 0, err
    assert "going on from step" in err
    assert result(workdir) == result(unbroken)
    assert losses(workdir) == losses(unbroken)


def test_told_to_stop_it_saves_and_says_so_with_75(folder, unbroken):
    workdir = folder / "terminated"
    process = start(folder, workdir, last=5, training__checkpoint_every=1000)
    wait_for_step(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 75, err
    assert "is saved; the same command goes on from there" in err.splitlines()[-1]
    saved = Checkpoints(workdir, 1, read_only=True).latest()
    assert saved == 5
    status, _, err = finish(start(folder, workdir, training__checkpoint_every=1000))
    assert (status, f"going on from step {saved}" in err) == (0, True)
    assert result(workdir) == result(unbroken)


def test_a_run_in_use_is_refused_and_ctrl_c_saves_it_and_ends_with_130(folder):
    workdir = folder / "busy"
    process = start(folder, workdir, last=3)
    wait_for_step(process, workdir, 3)
    status, _, err = finish(start(folder, workdir))
    assert (status, "is in use by another process" in err) == (2, True)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "stopped by Ctrl-C: step" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_damaged_newest_checkpoint_is_passed_over(folder, unbroken):
    workdir = folder / "damaged"
    shutil.copytree(unbroken, workdir)
    for file in (workdir / "checkpoints" / str(STEPS)).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-500])
    status, _, err = finish(start(folder, workdir))
    assert status == 0, err
    assert f"checkpoints/{STEPS} is damaged" in err.replace("\n", "")
    assert "going on from step 8" in err
    assert result(workdir) == result(unbroken)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_what_is_left(folder):
    workdir = folder / "diverged"
    status, _, err = finish(start(folder, workdir, training__learning_rate=1e30, training__weight_decay=0))
    assert status == 3
    last = err.splitlines()[-1]
    assert "nothing of it was saved" in last
    assert "step" in last and ("last good checkpoint is step" in last or "no checkpoint yet" in last)
    assert "Traceback" not in err


def test_a_full_disk_ends_the_run_with_3_and_leaves_the_last_checkpoint(folder, unbroken):
    workdir = folder / "full"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    # No file may grow beyond 20 kB: the next checkpoint cannot be written.
    status, _, err = finish(start(folder, workdir, limit=20_000))
    assert status == 3, err
    assert f"last good checkpoint is {workdir}/checkpoints/8" in err.replace("\n", "")
    assert "Traceback" not in err
    status, _, err = finish(start(folder, workdir))
    assert status == 0, err
    assert result(workdir) == result(unbroken)


def test_another_config_is_refused_field_by_field_and_free_fields_are_not(folder, unbroken):
    status, _, err = finish(start(folder, unbroken, training__learning_rate=0.5, model__ff_dim=64))
    assert status == 2
    assert "2 differing" in err
    assert "model.ff_dim: 32 -> 64" in err
    assert "training.learning_rate: 0.001 -> 0.5" in err
    status, _, err = finish(start(folder, unbroken, training__log_every=7, training__remat="layer"))
    assert status == 0
    assert "nothing left to train" in err


def test_other_data_are_refused(folder, unbroken):
    extra = folder / "corpus" / "extra.txt"
    extra.write_text("one more document")
    try:
        status, _, err = finish(start(folder, unbroken))
    finally:
        extra.unlink()
    assert status == 2
    assert "content_hash" in err


def test_a_directory_of_something_else_is_refused(folder):
    other = folder / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear reader")
    status, _, err = finish(start(folder, other))
    assert (status, "is not empty and was not made by stagjax" in err) == (2, True)
    assert (other / "letter.txt").read_text() == "dear reader"
