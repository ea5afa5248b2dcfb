"""TPU VMs, with a gcloud whose workers are directories of this machine and really run `worker.sh`."""

import contextlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tarfile

import pytest

from tests.test_local_processes import eventually
from tpu.vm import _pack

ROOT = pathlib.Path(__file__).parent.parent.parent
PLACE = ("--name=pile-1", "--project=some-project", "--zone=some-zone", "--topology=v5p:2x2x2")


class Cloud:
    """The fake cloud's directory, and the launcher as a process beside it."""

    def __init__(self, path):
        self.path = path
        self.say("workers", 2)
        programs = path / "bin"
        programs.mkdir()
        fake = programs / "gcloud"
        fake.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/tpu/fake_gcloud.py"} "$@"\n')
        fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
        self.environment = os.environ | {
            "CLOUD": str(path),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.logs = path / "logs"
        self.started = []

    def say(self, name, value):
        # Renamed into place: the launcher looks at it meanwhile.
        (self.path / f"{name}.new").write_text(str(value))
        (self.path / f"{name}.new").rename(self.path / name)

    def start(self, verb, *words):
        process = subprocess.Popen(
            [sys.executable, "-m", "tpu", "vm", verb, *PLACE, f"--logs={self.logs}", "--grace=5", *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, verb, *words):
        process = self.start(verb, *words)
        out, err = process.communicate(timeout=90)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def launch(self, program, *flags):
        return self.start("run", "--poll-seconds=0.1", "--backoff=0.1", *flags, "--", "bash", "-c", program)

    def finish(self, process):
        out, err = process.communicate(timeout=90)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def both_started(self):
        return all((self.path / f"started-{worker}").exists() for worker in range(2))

    def kill(self, workers="*"):
        """Kill workers' commands together with the shells that watch them."""
        for pid in self.path.glob(f"{workers}/stagjax-run/runs/train/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)

    def calls(self, verb):
        lines = (self.path / "calls").read_text().splitlines() if (self.path / "calls").exists() else []
        return [call for call in map(json.loads, lines) if call[3] == verb]


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for process in cloud.started:
        process.kill()
        process.wait()
    cloud.kill()


def test_from_nothing_to_done(cloud):
    status, out, _ = cloud.finish(cloud.launch('echo "$PWD" worker $WORKER; env | grep ^SAID', "--env=SAID=a b"))
    assert status == 0, out
    (create,) = cloud.calls("create")
    assert "--accelerator-type=v5p-16" in create and "--node-id=pile-1" in create and "--spot" not in create
    assert all("--project=some-project" in call and "--zone=some-zone" in call for call in cloud.calls("ssh"))
    for worker in range(2):
        assert (cloud.path / f"worker-{worker}" / "set-up").exists()
        assert (cloud.path / f"worker-{worker}" / "stagjax-run" / "source.tar.gz").exists()
        log = (cloud.logs / "pile-1" / f"{worker}.log").read_text()
        assert f"stagjax-run worker {worker}\n" in log and "SAID=a b" in log
        # Both ran the same line.
    starts = {word for call in cloud.calls("ssh") for word in call if "worker.sh start" in word}
    assert len(starts) == 1


def test_preempted_workers_start_again_on_the_same_machines(cloud):
    once = "echo go; [[ $WORKER == 1 ]] && [[ ! -e $CLOUD/again ]] && { touch $CLOUD/again; exit 75; }; "
    once += "[[ -e $CLOUD/again ]] || sleep 60"
    status, out, _ = cloud.finish(cloud.launch(once))
    assert status == 0, out
    assert "ended with 75 (preempted and saved)" in out and "restart 1 of 10" in out
    assert len(cloud.calls("create")) == 1 and len(cloud.calls("scp")) == 1
    assert (cloud.logs / "pile-1" / "0.log").read_text().count("go\n") == 2


def test_machines_that_are_gone_are_asked_for_again(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; [[ -e $CLOUD/second ]] || sleep 60", "--capacity=spot")
    assert eventually(cloud.both_started, 20)
    (cloud.path / "second").touch()
    (cloud.path / "worker-0" / "set-up").unlink()
    cloud.say("state", "SUSPENDED")
    cloud.say("node", "PREEMPTED")
    cloud.kill()  # as the machines' end does
    status, out, _ = cloud.finish(process)
    assert status == 0, out
    assert "pile-1 ended with 137 (its machines are SUSPENDED)" in out
    assert "deleting it, to ask for capacity again" in out
    assert len(cloud.calls("create")) == 2 and all("--spot" in call for call in cloud.calls("create"))
    assert len(cloud.calls("delete")) == 1
    assert (cloud.path / "worker-0" / "set-up").exists()


@pytest.mark.parametrize("code", [2, 3])
def test_failures_are_final_and_the_others_are_asked_to_save(cloud, code):
    program = f"[[ $WORKER == 0 ]] || {{ echo 'what was wrong, in (words)'; exit {code}; }}; "
    program += "trap 'touch $CLOUD/saved-$WORKER; exit 75' TERM; sleep 60 & wait"
    status, out, _ = cloud.finish(cloud.launch(program))
    assert status == code
    assert f"ended with {code} (" in out and "): what was wrong, in (words)\n" in out
    assert "not started again" in out and len(cloud.calls("create")) == 1
    assert (cloud.path / "saved-0").exists()


def test_the_run_outlives_its_launcher_which_finds_it_again(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; until [[ -e $CLOUD/go ]]; do sleep 0.05; done; echo over")
    assert eventually(cloud.both_started, 20)
    process.send_signal(signal.SIGINT)
    status, out, _ = cloud.finish(process)
    assert status == 130 and "the run goes on" in out
    _, out, _ = cloud.run("status")
    assert out.startswith("pile-1: ACTIVE\n") and out.count(" running") == 2
    process = cloud.launch("echo another line; exit 1")
    assert eventually(lambda: len(cloud.calls("ssh")) > 8)
    (cloud.path / "go").touch()
    status, out, _ = cloud.finish(process)
    assert status == 0 and "watching it" in out
    log = (cloud.logs / "pile-1" / "1.log").read_text()
    assert "over" in log and "another" not in log


def test_stop_lets_every_worker_save(cloud):
    process = cloud.launch(
        "trap 'touch $CLOUD/saved-$WORKER; exit 75' TERM; touch $CLOUD/started-$WORKER; sleep 60 & wait",
        "--max-restarts=0",
    )
    assert eventually(cloud.both_started, 20)
    assert cloud.run("stop")[0] == 0
    status, out, _ = cloud.finish(process)
    assert status == 75 and "given up after 0 restarts" in out
    assert all((cloud.path / f"saved-{n}").exists() for n in range(2))


def test_a_worker_that_is_killed_with_its_shell(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; [[ -e $CLOUD/go ]] || sleep 60")
    assert eventually(cloud.both_started, 20)
    (cloud.path / "go").touch()
    cloud.kill("worker-1")
    status, out, _ = cloud.finish(process)
    assert status == 0 and "ended with 137 (signal 9)" in out


def test_a_worker_out_of_reach_is_waited_for(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; until [[ -e $CLOUD/go ]]; do sleep 0.05; done")
    assert eventually(cloud.both_started, 20)
    cloud.say("unreachable", "1")
    (cloud.path / "go").touch()
    before = len(cloud.calls("ssh"))
    assert eventually(lambda: len(cloud.calls("ssh")) > before + 2)
    cloud.say("unreachable", "")
    assert cloud.finish(process)[0] == 0
    assert len(cloud.calls("create")) == 1


def test_tear_down_asks(cloud):
    cloud.say("state", "ACTIVE")
    cloud.say("node", "READY")
    status, _, err = cloud.run("delete")
    assert status == 2 and "say so with --yes" in err and (cloud.path / "state").exists()
    assert cloud.run("delete", "--yes")[0] == 0
    assert not (cloud.path / "state").exists()
    (call,) = cloud.calls("delete")
    assert call[:5] == ["compute", "tpus", "queued-resources", "delete", "pile-1"]


def test_several_slices_are_several_nodes(cloud):
    status, out, _ = cloud.run("run", "--slices=2", "--dry-run", "--", "stagjax", "train")
    assert status == 0 and not (cloud.path / "calls").exists()
    assert "--node-count=2 --node-prefix=pile-1" in out
    starts = [line for line in out.splitlines() if "worker.sh start" in line]
    assert [line.split()[5] for line in starts] == ["pile-1-0", "pile-1-1"]
    assert len({line.partition("--command")[2] for line in starts}) == 1


def test_the_archive_holds_what_git_knows(tmp_path):
    clone = tmp_path / "clone"
    (clone / "stagjax").mkdir(parents=True)
    for name in ("setup.py", "stagjax/config.py", "large.bin"):
        (clone / name).write_text(name)
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    subprocess.run(["git", "add", "setup.py", "stagjax"], cwd=clone, check=True)
    (clone / "stagjax/config.py").write_text("changed")
    _pack(clone, tmp_path / "archive")
    with tarfile.open(tmp_path / "archive") as tar:
        assert sorted(tar.getnames()) == ["setup.py", "stagjax/config.py"]
        assert tar.extractfile("stagjax/config.py").read() == b"changed"
