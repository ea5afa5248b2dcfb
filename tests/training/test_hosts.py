"""Runs on several hosts, as processes over the loopback network: stopped, killed, and gone on with elsewhere."""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from stagjax.checkpoints.saving import Checkpoints
from stagjax.reporting.metrics import read_metrics
from stagjax.training.loop import _Run
from tests.compiling import environment
from tests.runs import TINY, write_corpus
from tests.waits import HANG, reserved

STEPS = 20
FIELDS = TINY | {
    "model.layers_per_stack": 1,
    "training.steps": STEPS,
    "training.learning_rate": 1e-3,
    "training.global_batch": 8,
    "training.log_every": 1,
    "training.validate_every": 10,
    "training.checkpoint_every": 5,
    "training.validation_rows": 12,  # one batch and a half
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small corpus."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    return folder


class Cluster:
    """Processes that train in one workdir, started as the hosts of a pod are: each with a command line of its own."""

    def __init__(
        self,
        folder,
        workdir,
        processes,
        devices,
        changes=None,
        everywhere=False,
        arguments=(),
        last_devices=None,
        last_step=None,
    ):
        """Start all; `changes` are config fields of the last process, or `everywhere`.

        After `last_step` they wait for rows until `go_on` is called; of the last step nothing is written by then.
        """
        self.gate = folder / f"{workdir.name}_{last_step}"
        self.held = reserved()
        place = f"--coordinator=127.0.0.1:{self.held.getsockname()[1]}", f"--num-processes={processes}"
        self.workdir = workdir
        self.processes = []
        for index in range(processes):
            last = index == processes - 1
            number = last_devices if last and last_devices else devices
            fields = FIELDS | {"data.path": str(folder / "corpus")} | (changes or {} if last or everywhere else {})
            program = ["tests.training.faults", json.dumps({"waits": (last_step, str(self.gate))})]
            command = [sys.executable, "-m", *(program if last_step else ["stagjax"])]
            command += ["train", "--config=experiments/stdlib.py:shared_2x3,runlocal"]
            command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]
            command += [*arguments, *([*place, f"--process-id={index}"] if processes > 1 else [])]
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment(f"--xla_force_host_platform_device_count={number}"),
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()
        self.held.close()

    def go_on(self):
        self.gate.touch()

    def wait_for_step(self, step):
        self._wait(lambda: max((s for s in losses(self.workdir)), default=0) >= step, f"step {step}")

    def wait_for_checkpoint(self, step):
        """Wait until it is whole, which is some steps later."""
        self._wait(lambda: (self.workdir / "checkpoints" / str(step)).exists(), f"checkpoint {step}")

    def _wait(self, reached, what):
        deadline = time.monotonic() + HANG
        while all(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            if reached():
                return
            time.sleep(0.01)
        raise AssertionError(f"{what} was not reached: {self.ends()}")

    def ends(self, seconds=HANG):
        """Return (status, standard error) of each process."""
        ends = []
        for process in self.processes:
            _, err = process.communicate(timeout=seconds)
            ends.append((process.returncode, err))
        return ends


def run(folder, workdir, processes, devices):
    with Cluster(folder, workdir, processes, devices) as cluster:
        ends = cluster.ends()
    assert [status for status, _ in ends] == [0] * processes, ends
    return ends


def metric(workdir, name):
    with contextlib.suppress(json.JSONDecodeError):  # while it is written
        return {line["step"]: line[name] for line in read_metrics(workdir) if name in line}
    return {}


def losses(workdir):
    return metric(workdir, "train/loss")


def fingerprint(workdir):
    return Checkpoints(workdir, 1, read_only=True).read_metadata(STEPS)["fingerprint"]


def kept_steps(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]


def copy(workdir, name):
    return pathlib.Path(shutil.copytree(workdir, workdir.parent / name))


def assert_same_run(workdir, other, start=1):
    """All batches are the same, none is missing or there twice, and losses agree as on different devices they can."""
    steps = [line["step"] for line in read_metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
    hashes = metric(workdir, "train/batch_hash")
    assert hashes == metric(other, "train/batch_hash")
    assert len(set(hashes.values())) == STEPS
    for name in ("train/loss", "validation/loss", "validation/bits_per_byte"):
        mine, theirs = metric(workdir, name), metric(other, name)
        assert mine.keys() == theirs.keys() and len(mine) >= 2
        assert all(mine[step] == pytest.approx(theirs[step], rel=1e-5) for step in mine)


@pytest.fixture(scope="module")
def alone(folder):
    """One process of four devices, unbroken."""
    run(folder, folder / "alone", 1, 4)
    return folder / "alone"


@pytest.fixture(scope="module")
def stopped(folder):
    """Two processes of two devices, of which the second is told to stop."""
    workdir = folder / "broken"
    with Cluster(folder, workdir, 2, 2, last_step=4) as cluster:
        cluster.wait_for_step(3)
        cluster.processes[1].send_signal(signal.SIGTERM)
        cluster.go_on()
        return workdir, cluster.ends()


@pytest.fixture(scope="module")
def broken(folder, stopped):
    """The same run, gone on with, until the second process is killed."""
    workdir, _ = stopped
    with Cluster(folder, workdir, 2, 2, last_step=13) as cluster:
        cluster.wait_for_step(12)
        cluster.processes[1].kill()
        cluster.go_on()
        return workdir, cluster.ends()


@pytest.fixture(scope="module")
def finished(folder, broken):
    """The same run again, to its end; what it started from is kept in "left"."""
    workdir, _ = broken
    copy(workdir, "left")
    run(folder, workdir, 2, 2)
    return workdir


def test_told_to_stop_one_stops_all_after_the_same_step(stopped):
    workdir, ends = stopped
    for status, err in ends:
        assert status == 75, err
        assert "is saved; the same command goes on from there" in err.splitlines()[-1]
        assert "Traceback" not in err
    last = {err.splitlines()[-1] for _, err in ends}
    assert len(last) == 1
    assert f"step {max(kept_steps(workdir))} is saved" in last.pop()


def test_a_killed_process_ends_the_others_with_3(broken):
    workdir, ((status, err), (killed, _)) = broken
    assert (status, killed) == (3, -signal.SIGKILL)
    assert "going on from step" in err
    last = err.splitlines()[-1]
    assert last.startswith("stagjax: lost process 1 on ")
    assert f"the last good checkpoint is {workdir}/checkpoints/{max(kept_steps(workdir))}; start all" in last
    assert "Traceback" not in err


def test_started_again_nothing_is_repeated_and_nothing_skipped(alone, finished):
    assert_same_run(finished, alone)


def test_it_goes_on_in_one_process(folder, alone, finished):
    workdir = copy(folder / "left", "one")
    run(folder, workdir, 1, 4)
    assert_same_run(workdir, alone)


def test_it_goes_on_in_four_processes_bit_for_bit(folder, finished):
    workdir = copy(folder / "left", "four")
    ends = run(folder, workdir, 4, 1)
    assert "going on from step" in ends[0][1]
    assert losses(workdir) == losses(finished)
    assert fingerprint(workdir) == fingerprint(finished)
    # The first speaks for all, but for what concerns a process alone.
    assert all("loss" not in err for _, err in ends[1:])


def test_configs_that_differ_are_refused_before_anything_is_computed(folder):
    workdir = folder / "differing"
    with Cluster(folder, workdir, 2, 1, {"training.seed": 1, "mesh.tensor": 2}) as cluster:
        ends = cluster.ends()
    for status, err in ends:
        assert status == 2
        assert "the processes differ in mesh.tensor: 1 on process 0 on " in err.splitlines()[-1]
        assert "; training.seed: 0 on process 0" in err and "Traceback" not in err
    assert not workdir.exists()


@pytest.mark.parametrize(("processes", "settled"), [(1, 1), (2, 0)])
def test_a_host_that_waits_for_rows_does_not_judge_a_step_before_the_others(monkeypatch, processes, settled):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    run = mock.MagicMock(interrupts=mock.Mock(caught=None))
    run._take.side_effect = [None, None, "batch"]
    assert _Run._next_batch(run) == "batch"
    assert run._settle.call_count == settled


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_process_0_killed_is_lost_too(folder, alone, attempt):
    workdir = folder / f"without_process_0_{attempt}"
    with Cluster(folder, workdir, 2, 2) as cluster:
        cluster.wait_for_checkpoint(5)
        cluster.processes[0].kill()
        (killed, _), (status, err) = cluster.ends()
    assert (killed, status) == (-signal.SIGKILL, 3), err
    assert "stagjax: lost process 0 on " in err
    assert f"the last good checkpoint is {workdir}/checkpoints/{max(kept_steps(workdir))}; start all" in err
    if attempt == 0:
        run(folder, workdir, 2, 2)
        assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_process_that_is_frozen_is_lost(folder):
    with Cluster(folder, folder / "frozen", 2, 1) as cluster:
        cluster.wait_for_checkpoint(5)
        cluster.processes[1].send_signal(signal.SIGSTOP)
        status, err = cluster.processes[0].wait(HANG), cluster.processes[0].stderr.read()
    assert status == 3
    assert "gave no sign of life for 60 s; the last good checkpoint is " in err


@pytest.mark.slow
def test_ctrl_c_on_all_hosts_saves_and_ends_with_130(folder, alone):
    workdir = folder / "interrupted"
    with Cluster(folder, workdir, 2, 2, last_step=4) as cluster:
        cluster.wait_for_step(3)
        for process in cluster.processes:
            process.send_signal(signal.SIGINT)
        cluster.go_on()
        ends = cluster.ends()
    for status, err in ends:
        assert status == 130
        assert "stopped by Ctrl-C: step" in err.splitlines()[-1] and "Traceback" not in err
    run(folder, workdir, 2, 2)
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_at_once(folder):
    with Cluster(folder, folder / "interrupted_twice", 2, 2, last_step=4) as cluster:
        cluster.wait_for_step(3)
        for _ in range(2):
            cluster.processes[1].send_signal(signal.SIGINT)
            time.sleep(0.01)
        cluster.go_on()
        (status, err), (interrupted, _) = cluster.ends()
    # Where both come before a step has ended, the first may have saved by then.
    assert (status, interrupted) == (130, 130)
    assert "Traceback" not in err


@pytest.mark.slow
def test_layers_divided_over_hosts_share_rows(folder, alone):
    """Tensor=8 over two hosts: each reads every row of a batch, and losses are those of fsdp=8."""
    workdir = folder / "tensor"
    fields = {"mesh.tensor": 8, "model.num_heads": 8, "model.num_kv_heads": 8, "model.vocab_size": 264}
    for name, processes, devices in (("tensor", 2, 4), ("tensor_alone", 1, 8)):
        with Cluster(folder, folder / name, processes, devices, changes=fields, everywhere=True) as cluster:
            ends = cluster.ends()
        assert [status for status, _ in ends] == [0] * processes, ends
    assert_same_run(workdir, folder / "tensor_alone")


@pytest.mark.slow
def test_hosts_with_different_numbers_of_devices_are_refused(folder):
    with Cluster(folder, folder / "uneven", 2, 4, last_devices=2) as cluster:
        ends = cluster.ends()
    for status, err in ends:
        assert status == 2
        assert "different numbers of devices: 2 (process 1), 4 (process 0)" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_workdir_in_use_ends_all_processes(folder):
    workdir = folder / "busy"
    with Cluster(folder, workdir, 1, 1, changes={"training.steps": 10**6}) as first:
        first.wait_for_step(1)
        with Cluster(folder, workdir, 2, 1, changes={"training.steps": 10**6}, everywhere=True) as second:
            ends = second.ends()
    for status, err in ends:
        assert status == 2
        assert "is in use by another process" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_line_starts_processes_of_this_machine_and_stops_them(folder, number):
    workdir = folder / f"local_{number.name}"
    arguments = ("--local-processes=2", "--devices-per-process=2")
    with Cluster(folder, workdir, 1, 1, arguments=arguments) as cluster:
        cluster.wait_for_step(3)
        cluster.processes[0].send_signal(number)
        ((status, err),) = cluster.ends()
    assert status == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], err
    assert "is saved; the same command goes on from there" in err.splitlines()[-1]
    with Cluster(folder, workdir, 1, 1, arguments=arguments) as cluster:
        ((status, err),) = cluster.ends()
    assert status == 0, err
    assert "going on from step" in err and "training on 4 devices" in err
