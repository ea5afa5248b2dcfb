"""Runs in this process, on one device: what a bad step, a slow reader and a broken disk do to them."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import rich.console

from stagjax import memory
from stagjax.checkpoints.saving import Checkpoints
from stagjax.config import Config, DataConfig, TrainingConfig
from stagjax.data.loader import RowLoader
from stagjax.errors import Preempted, RunFailed, UserError
from stagjax.hardware import Chip
from stagjax.mesh import training_mesh
from stagjax.model.accounting import training_memory
from stagjax.reporting.metrics import read_metrics
from stagjax.reporting.progress import Progress
from stagjax.training import loop
from stagjax.training.profiling import Window
from tests.runs import write_corpus
from tests.training import faults
from tests.variants import tiny
from tests.waits import HANG, eventually

pytestmark = pytest.mark.usefixtures("compiled_once")
STEPS = 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small corpus."""
    folder = tmp_path_factory.mktemp("policies")
    write_corpus(folder)
    return folder


def config_of(folder, **training):
    defaults = {"steps": STEPS, "global_batch": 4, "learning_rate": 3e-3, "warmup_steps": 5, "log_every": 1}
    defaults |= {"validate_every": 8, "checkpoint_every": 8, "validation_rows": 4}
    return Config(
        tiny(vocab_size=259, layers_per_stack=1, num_stacks=1),
        DataConfig("text", str(folder / "corpus"), row_length=32),
        TrainingConfig(**(defaults | training)),
    )


def stop_it(workdir, step):
    """Tell this process to stop once a step is taken."""
    if eventually(lambda: (workdir / "metrics.jsonl").exists() and step in losses(workdir)):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(folder, monkeypatch):
    """Return train(name, faults, profile, **training) -> the run's workdir, its summary or error, what it printed.

    With `stop_after`, the reader hangs after that step and the process is then told to stop.
    """
    monkeypatch.setattr(loop, "training_mesh", lambda mesh: training_mesh(mesh, jax.devices()[:1]))

    def train(name, fault=None, profile=None, terminal=False, stop_after=None, **training):
        config = config_of(folder, **training)
        released = folder / f"{name}_released"
        if stop_after:
            fault = (fault or {}) | {"waits": (stop_after, str(released))}
            threading.Thread(target=stop_it, args=(folder / name, stop_after)).start()
        out = io.StringIO()
        console = rich.console.Console(file=out, force_terminal=terminal, width=120, _environ={"TERM": "xterm"})
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_console", lambda: console)
            faults.inject(patch.setattr, **(fault or {}))
            try:
                result = loop.train(config, folder / name, profile=profile)
            except (RunFailed, Preempted, UserError) as error:
                result = error
            released.touch()
        return folder / name, result, out.getvalue()

    return train


def fingerprint(workdir):
    return Checkpoints(workdir, 1, read_only=True).read_metadata()["fingerprint"]


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line}


def test_skipping_goes_on_and_counts(train):
    policies = {"nonfinite": "skip", "spikes": "skip"}
    workdir, summary, out = train("skip", {"nonfinite": [9, 10], "spike": [45]}, **policies)
    assert summary.step == STEPS, summary
    assert "step 10: loss nan, gradient norm nan (not finite): its update is skipped, 1 in a row, 1 in all" in out
    assert "step 11: loss nan, gradient norm nan (not finite): its update is skipped, 2 in a row, 2 in all" in out
    assert "(a spike): its update is skipped, 1 in a row, 3 in all" in out
    assert [line["train/skipped"] for line in read_metrics(workdir) if "train/skipped" in line][-1] == 3
    # Metrics of skipped steps are there: JSON has no word for NaN.
    assert losses(workdir)[10] is None
    assert losses(workdir)[46] > 10 * losses(workdir)[47]


def test_too_many_skips_in_a_row_stop_the_run(train):
    _, error, _ = train("stuck", {"nonfinite": range(9, 99)}, nonfinite="skip", max_recoveries=3)
    assert isinstance(error, RunFailed)
    assert "step 13: " in str(error) and "after 3 skipped ones in a row" in str(error)
    assert "the last good checkpoint is" in str(error) and str(error).count("checkpoints/8;") == 1


def test_rolling_back_passes_over_the_batches_since_the_checkpoint(train, monkeypatch):
    policies = {"nonfinite": "rollback", "spikes": "rollback", "keep_last": 9}
    workdir, summary, out = train("rollback", {"nonfinite": [4, 11], "spike": [52]}, **policies)
    assert summary.step == STEPS, summary
    # After batches 0 to 4, step n reads batch n + 4; after 5 to 11 too, n + 11.
    assert "step 5: loss nan, gradient norm nan (not finite): rolled back to step 0; the 5 batches" in out
    assert "step 7: loss nan, gradient norm nan (not finite): rolled back to step 0; the 7 batches" in out
    assert "step 41: loss" in out and "(a spike): rolled back to step 40; the 1 batches" in out
    metadata = Checkpoints(workdir, 1, read_only=True).read_metadata()
    assert metadata["skipped_batches"] == [[0, 5], [5, 12], [52, 53]]
    assert Checkpoints(workdir, 1, read_only=True).read_metadata(40)["skipped_batches"] == [[0, 5], [5, 12]]
    steps = [line["step"] for line in read_metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
    rollbacks = [line for line in read_metrics(workdir) if "rollback/from_step" in line]
    assert [(line["step"], line["rollback/from_step"]) for line in rollbacks] == [(0, 5), (0, 7), (40, 41)]
    account = json.loads((workdir / "goodput.json").read_text())["seconds"]
    assert account["lost"] > 0
    # What was passed over had no influence: a run that never sees those batches ends with the same state.
    sound, others = RowLoader.batch, [number for number in range(12, STEPS + 13) if number != 52]
    monkeypatch.setattr(RowLoader, "batch", lambda self, number: sound(self, others[number]))
    clean, _, _ = train("clean", **policies)
    assert fingerprint(clean) == fingerprint(workdir)


def test_a_rollback_undoes_the_same_steps_where_the_run_was_told_to_stop_before(train):
    policies = {"spikes": "rollback", "keep_last": 1}
    unbroken, _, _ = train("straight", {"spike": [46]}, **policies)
    stopped, error, _ = train("stopped", {"spike": [46]}, stop_after=44, **policies)
    assert "step 44 is saved" in str(error)
    _, _, out = train("stopped", {"spike": [46]}, **policies)
    assert "going on from step 44" in out and "rolled back to step 40; the 7 batches" in out
    assert fingerprint(stopped) == fingerprint(unbroken)


def test_rollbacks_without_progress_stop_the_run(train):
    _, error, out = train("circles", {"nonfinite": range(9, 999)}, nonfinite="rollback", max_recoveries=2)
    assert isinstance(error, RunFailed)
    assert out.count("rolled back to step 8") == 2
    assert "after 2 rollbacks without another checkpoint" in str(error)
    assert "the last good checkpoint is" in str(error)


def test_a_spike_can_stop_the_run_which_goes_on_under_another_policy(train):
    fault = {"spike": [45]}
    workdir, error, _ = train("spike", fault, spikes="stop")
    assert isinstance(error, RunFailed)
    assert "step 46: loss" in str(error) and "(a spike); nothing of it was saved" in str(error)
    assert str(workdir / "checkpoints" / "40") in str(error)
    _, summary, out = train("spike", fault, spikes="skip")
    assert (summary.step, "going on from step 40" in out, "skipped, 1 in a row, 1 in all" in out) == (STEPS, True, True)


def test_kept_for_ever_are_checkpoints_of_every_mth_step_also_between_others(train):
    workdir, _, _ = train("kept", keep_every=12, keep_last=1, checkpoint_every=16, steps=40)
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    best = Checkpoints(workdir, 1, read_only=True).best()
    assert kept == {12, 24, 36, 40, best}


def test_a_slow_reader_is_measured_and_warned_of_and_a_fast_one_is_not(train):
    workdir, _, out = train("slow", {"slow_seconds": 0.1}, steps=10, log_every=5)
    shares = [line["train/input_share"] for line in read_metrics(workdir) if "train/input_share" in line]
    assert len(shares) == 2 and shares[-1] > 0.5
    assert out.count("warning: the devices wait for input") == 1
    assert "input" in out[out.index("goodput") :]
    waited = json.loads((workdir / "goodput.json").read_text())["seconds"]["input"]
    assert waited > 0.3
    workdir, _, _ = train("fast", steps=10, log_every=10)
    (line,) = [line for line in read_metrics(workdir) if "train/input_share" in line]
    assert line["train/input_share"] < shares[-1]


def test_rows_that_cannot_be_read_end_the_run_with_what_is_left(train):
    workdir, error, _ = train("unreadable", {"unreadable": 20})
    assert isinstance(error, RunFailed)
    assert str(error) == (
        "step 21: its rows cannot be read: [Errno 5] Input/output error: 'rows-00003'; "
        f"the last good checkpoint is {workdir}/checkpoints/16"
    )
    assert max(losses(workdir)) == 20


def test_told_to_stop_while_the_reader_hangs_it_saves_and_ends(train):
    begun = time.monotonic()
    workdir, error, _ = train("hung", stop_after=11)
    assert isinstance(error, Preempted), error
    assert "step 11 is saved" in str(error)
    assert time.monotonic() - begun < HANG  # which the reader takes
    assert Checkpoints(workdir, 1, read_only=True).latest() == 11


def test_checkpoints_that_cannot_be_written_any_more_end_the_run_soon(train, folder):
    gone = (folder / "gone").as_posix()
    workdir, error, _ = train("gone", {"checkpoints_gone": (20, gone, 16)}, keep_last=9)
    assert isinstance(error, RunFailed), error
    assert str(error) == (
        f"{workdir}/checkpoints cannot be cleared of old checkpoints: not a directory; "
        f"checkpoints cannot be looked at in {workdir}/checkpoints: not a directory"
    )


def test_a_save_that_fails_in_the_background_stops_the_run_before_the_next_one(train, monkeypatch):
    def failing(self, *args, **kwargs):
        first = not self._proved
        sound(self, *args, **kwargs)
        if not first:  # which is waited for
            self._writer._async_manager._exception = OSError(28, "No space left on device")

    sound = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", failing)
    workdir, error, _ = train("background", checkpoint_every=16, steps=10_000)
    assert isinstance(error, RunFailed)
    assert "checkpoint 32 could not be written" in str(error) and "no space left" in str(error)
    assert max(losses(workdir)) == 32


def test_a_disk_without_room_for_metrics_names_the_last_checkpoint(train):
    workdir, error, _ = train("full", {"metrics_full": 20})
    assert isinstance(error, RunFailed)
    assert str(error) == (
        f"metrics could not be written to {workdir}: no space left on device; "
        f"the last good checkpoint is {workdir}/checkpoints/16"
    )


def test_a_terminal_shows_every_step_and_a_log_does_not(train, monkeypatch):
    shown, update = [], Progress.update
    monkeypatch.setattr(Progress, "update", lambda self, step, **c: shown.append(step) or update(self, step, **c))
    _, _, out = train("shown", steps=20, log_every=10, terminal=True)
    assert shown == list(range(1, 21))
    assert "tokens/s" in out and "input wait" in out and "left" in out
    assert "mfu" not in out
    _, _, out = train("logged", steps=20, log_every=10)
    assert out.count("/20  loss") == 2


def test_a_known_chip_has_an_mfu(train, monkeypatch):
    chip = Chip("two devices", flops=2e9, hbm_bandwidth=1, memory=1, devices=2)
    monkeypatch.setattr(loop, "chip_of", lambda device: chip)
    workdir, _, out = train("mfu", steps=20, log_every=10)
    last = next(line for line in reversed(read_metrics(workdir)) if "train/mfu" in line)
    flops = loop.training_flops(tiny(vocab_size=259, layers_per_stack=1, num_stacks=1), 32)
    assert last["train/mfu"] == pytest.approx(last["train/tokens_per_second"] * flops / 1e9)
    assert f"mfu {last['train/mfu']:.1%}" in out


@pytest.fixture
def without_libtpu(request):
    """Run a test that profiles in a process of its own where this one has loaded libtpu, as planning does.

    jaxlib 0.10.2 would end with a segmentation fault when its profiler starts.
    """
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and "libtpu.so" in maps.read_text():
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            request.node.nodeid,
        ]
        found = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True, timeout=HANG)
        assert found.returncode == 0 and "1 passed" in found.stdout, found.stdout + found.stderr
        pytest.skip("passed in a process of its own")


@pytest.mark.parametrize(
    ("window", "stop", "said", "profiled"),
    [
        ("5:7", None, "steps 5 to 7 are profiled in", [5, 6, 7]),
        ("3:4", 8, "the run goes on from step 8, behind them; nothing is profiled", []),
        ("6:10", 8, "the run goes on from step 8; the steps after it are profiled", [9, 10]),
    ],
)
def test_exactly_the_steps_of_the_window_are_profiled(without_libtpu, train, window, stop, said, profiled):
    name = f"profile_{window.replace(':', '_')}"
    if stop:
        train(name, {"unreadable": stop}, steps=12)
    workdir, _, out = train(name, profile=Window.parse(window), steps=12)
    assert said in out
    traces = list((workdir / "profile").rglob("*.xplane.pb")) if profiled else []
    assert len(traces) == len(profiled[:1])
    if profiled:
        spaces = jax.profiler.ProfileData.from_file(str(traces[0]))
        steps = {
            dict(event.stats).get("step_num")
            for plane in spaces.planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        }
        assert sorted(steps) == profiled
        assert len(list((workdir / "profile").rglob("perfetto_trace.json.gz"))) == 1


def test_a_window_that_the_run_ends_within_is_closed(without_libtpu, train):
    workdir, error, out = train("cut", {"unreadable": 6}, profile=Window(5, 9), steps=12)
    assert isinstance(error, RunFailed)
    assert "the run ended within --profile-steps" in out
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["5", "7:5", "0:3", "a:b", "5:", ":5", "-1:3"])
def test_windows_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=f"--profile-steps={text} is not FIRST:LAST"):
        Window.parse(text)


def test_a_window_behind_the_end_is_refused_before_anything_is_done(train):
    workdir, error, _ = train("late", profile=Window(90, 99), steps=12)
    assert "--profile-steps=90:99 ends after the last step, training.steps=12" in str(error)
    assert not workdir.exists()


def test_a_run_that_an_earlier_build_began_goes_on_with_its_rates(train, folder):
    workdir, schedule = folder / "earlier", {"learning_rate": 1.0, "warmup_steps": 2, "steps": 3, "weight_decay": 0.0}
    _, error, _ = train("earlier", {"nonfinite": [0]}, schedule="cosine_from_zero", **schedule)
    assert isinstance(error, RunFailed)
    stored = json.loads((workdir / "config.json").read_text())
    del stored["training"]["schedule"]  # earlier builds had but one, and did not store it
    (workdir / "config.json").write_text(json.dumps(stored))
    recorded = json.loads((workdir / "versions.json").read_text())
    recorded["history"][0]["versions"]["flax"] = "0.1"
    (workdir / "versions.json").write_text(json.dumps(recorded))
    _, summary, out = train("earlier", **schedule)
    assert summary.step == 3, summary
    assert "going on with other versions, which may round differently: flax 0.1 -> " in out
    assert "learning rates are those of earlier builds: training.schedule=cosine_from_zero" in out
    rates = [line["train/learning_rate"] for line in read_metrics(workdir) if "train/learning_rate" in line]
    assert rates == [0.0, 0.5, 1.0]
    assert json.loads((workdir / "config.json").read_text())["training"]["schedule"] == "cosine_from_zero"
    _, summary, out = train("of this build", **schedule)
    rates = [
        line["train/learning_rate"] for line in read_metrics(folder / "of this build") if "train/learning_rate" in line
    ]
    assert rates == pytest.approx([0.5, 1.0, 0.1]) and "earlier builds" not in out


def test_too_little_memory_is_one_line_with_the_batch(train, folder, monkeypatch):
    says = "out of memory: a step of training.global_batch={} in training.accumulation=1 part(s), training.remat='none'"
    _, error, _ = train("large", global_batch=10**8)
    assert isinstance(error, RunFailed) and str(error).startswith(says.format(10**8))
    assert not (folder / "large").exists()
    tight = {"steps": 3, "warmup_steps": 1}
    estimate = sum(training_memory(config_of(folder, **tight)).values()) / 2
    with monkeypatch.context() as patch:
        patch.setattr(memory, "host_bytes", lambda: estimate)
        _, error, _ = train("tight", **tight)
    assert isinstance(error, RunFailed) and str(error).startswith(says.format(4)) and " GB of the " in str(error)
    with monkeypatch.context() as patch:
        patch.setattr(RowLoader, "batch", lambda self, number: np.empty(1 << 50))
        _, error, _ = train("tight", **tight)
    assert isinstance(error, RunFailed) and str(error).startswith(says.format(4))
    assert str(error).endswith("; there is no checkpoint yet")
