"""TPU VMs, with a gcloud whose workers are directories of this machine and really run `worker.sh`."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys
import tarfile

import pytest

from tests.waits import HANG, eventually
from tpu.source import pack

ROOT = pathlib.Path(__file__).parent.parent.parent
LINE = ["stagjax", "train", "--config=experiments/pile.py:separate_2x18", "--workdir=gs://bucket/run"]
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
            [sys.executable, "-m", "tpu", "vm", verb, *PLACE, f"--logs={self.logs}", f"--grace={HANG}", *words],
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
        out, err = process.communicate(timeout=HANG)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def launch(self, program, *flags):
        return self.start("run", "--poll-seconds=0.1", "--backoff=0.1", *flags, "--", "bash", "-c", program)

    def finish(self, process):
        out, err = process.communicate(timeout=HANG)
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


def named(words):
    return tuple(re.sub(r"^/\S*/", "", word) for word in words)


def test_from_nothing_to_done(cloud):
    program = 'echo "$PWD" worker $WORKER; env | grep ^SAID'
    _, planned, _ = cloud.finish(cloud.launch(program, "--env=SAID=a b", "--dry-run"))
    status, out, _ = cloud.finish(cloud.launch(program, "--env=SAID=a b"))
    assert status == 0, out
    # A dry run prints every command that is run then; files lie in another temporary directory.
    planned = [shlex.split(text) for text in planned.splitlines()]
    asked = [["gcloud", *call] for call in map(json.loads, (cloud.path / "calls").read_text().splitlines())]
    assert {named(call) for call in asked} <= {named(call) for call in planned}
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


def test_a_secret_for_each_attempt_in_a_file_of_each_worker(cloud):
    program = "stat --format=%a $STAGJAX_SECRET_FILE; cat $STAGJAX_SECRET_FILE; echo; echo; "
    program += "[[ -e $CLOUD/again-$WORKER ]] || { touch $CLOUD/again-$WORKER; exit 75; }"
    status, out, err = cloud.finish(cloud.launch(program))
    assert status == 0, out
    logs = [(cloud.logs / "pile-1" / f"{worker}.log").read_text() for worker in range(2)]
    first, second = (re.findall("^600\n([0-9a-f]{64})$", log, re.MULTILINE) for log in logs)
    assert first == second and len(set(first)) == 2  # the workers' is the same, the attempts' is not
    told = (cloud.path / "calls").read_text() + out + err
    assert not any(value in told for value in first)
    assert not list(cloud.path.glob("worker-*/**/*secret*"))


def test_what_set_up_installs(tmp_path):
    """The real script, with a Python that writes down what it is asked."""
    home, programs = tmp_path / "stagjax-run", tmp_path / "bin"
    (home / "clone").mkdir(parents=True)
    programs.mkdir()
    with tarfile.open(home / "source.tar.gz", "w:gz") as tar:
        tar.add(home / "clone", arcname="clone")
    (home / "lock.txt").write_text("# Python 3.11\njax==0.10.2\n")
    script = f'#!/bin/bash\necho "$(basename "$0") $*" >>{tmp_path}/asked\n'
    script += f'if [[ "$1 $2" == "-m venv" ]]; then mkdir -p $3/bin; cp {programs}/python3.11 $3/bin/python; '
    script += "cp $3/bin/python $3/bin/stagjax; fi\n"
    for name in ("python3.11", "python3.12"):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", ROOT / "tpu/setup.sh", "--lock", "lock.txt"], env=environment, check=True, timeout=HANG)
    asked = (tmp_path / "asked").read_text()
    # The Python of the lock, though a newer one is there, and its versions.
    assert f"python3.11 -m venv {home}/venv" in asked and "python3.12" not in asked
    install = f"pip install --quiet --constraint {home}/lock.txt --editable {home}/source[tpu,gcs]"
    assert install in asked


def test_preempted_workers_start_again_on_the_same_machines(cloud):
    once = "echo go; touch $CLOUD/started-$WORKER; [[ $WORKER == 1 ]] && [[ ! -e $CLOUD/again ]] && "
    once += "{ until [[ -e $CLOUD/started-0 ]]; do sleep 0.05; done; touch $CLOUD/again; exit 75; }; "
    once += "[[ -e $CLOUD/again ]] || sleep 600"
    status, out, _ = cloud.finish(cloud.launch(once))
    assert status == 0, out
    assert "ended with 75 (preempted and saved)" in out and "restart 1 of 10" in out
    assert len(cloud.calls("create")) == 1
    # The clone once, a secret for each attempt.
    assert [any("source.tar.gz" in word for word in call) for call in cloud.calls("scp")] == [True, False, False]
    assert (cloud.logs / "pile-1" / "0.log").read_text().count("go\n") == 2


def test_machines_that_are_gone_are_asked_for_again(cloud):
    program = "[[ -e $CLOUD/second ]] || { touch $CLOUD/started-$WORKER; sleep 600; }"
    process = cloud.launch(program, "--capacity=spot")
    assert eventually(cloud.both_started)
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
    # The new machines get the versions that the first ones installed.
    lock = cloud.logs / "pile-1.requirements.txt"
    assert lock.read_text() == "# Python 3.12\njax==0.12.0\n"
    asked = [word.partition("setup.sh")[2] for call in cloud.calls("ssh") for word in call if "setup.sh" in word]
    assert asked == ["", " --versions", " --lock pile-1.requirements.txt"]
    assert (cloud.path / "worker-1" / "stagjax-run" / lock.name).read_text() == lock.read_text()


@pytest.mark.parametrize("code", [2, 3])
def test_failures_are_final_and_the_others_are_asked_to_save(cloud, code):
    program = "[[ $WORKER == 0 ]] || { until [[ -e $CLOUD/started-0 ]]; do sleep 0.05; done; "
    program += f"echo 'what was wrong, in (words)'; exit {code}; }}; "
    program += "trap 'touch $CLOUD/saved-$WORKER; exit 75' TERM; touch $CLOUD/started-0; sleep 600 & wait"
    status, out, _ = cloud.finish(cloud.launch(program))
    assert status == code
    assert f"ended with {code} (" in out and "): what was wrong, in (words)\n" in out
    assert "not started again" in out and len(cloud.calls("create")) == 1
    assert (cloud.path / "saved-0").exists()


def test_the_run_outlives_its_launcher_which_finds_it_again(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; until [[ -e $CLOUD/go ]]; do sleep 0.05; done; echo over")
    assert eventually(cloud.both_started)
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
        "trap 'touch $CLOUD/saved-$WORKER; exit 75' TERM; touch $CLOUD/started-$WORKER; sleep 600 & wait",
        "--max-restarts=0",
    )
    assert eventually(cloud.both_started)
    assert cloud.run("stop")[0] == 0
    status, out, _ = cloud.finish(process)
    assert status == 75 and "given up after 0 restarts" in out
    assert all((cloud.path / f"saved-{n}").exists() for n in range(2))


def test_a_worker_that_is_killed_with_its_shell(cloud):
    process = cloud.launch("[[ -e $CLOUD/go ]] || { touch $CLOUD/started-$WORKER; sleep 600; }")
    assert eventually(cloud.both_started)
    (cloud.path / "go").touch()
    cloud.kill("worker-1")
    status, out, _ = cloud.finish(process)
    assert status == 0 and "ended with 137 (signal 9)" in out


def test_a_worker_out_of_reach_is_waited_for(cloud):
    process = cloud.launch("touch $CLOUD/started-$WORKER; until [[ -e $CLOUD/go ]]; do sleep 0.05; done")
    assert eventually(cloud.both_started)
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
    status, out, _ = cloud.run("run", "--slices=2", "--dry-run", "--", *LINE, "--config.mesh.data=2")
    assert status == 0 and not (cloud.path / "calls").exists()
    assert "--node-count=2 --node-prefix=pile-1" in out
    starts = [line for line in out.splitlines() if "worker.sh start" in line]
    assert [line.split()[5] for line in starts] == ["pile-1-0", "pile-1-1"]
    assert len({line.partition("--command")[2] for line in starts}) == 1


def test_the_archive_holds_what_git_does_not_ignore(tmp_path):
    clone = tmp_path / "clone"
    (clone / "experiments").mkdir(parents=True)
    for name in ("setup.py", "experiments/mine.py", "experiments/new é.py", "large.bin", "gone.py"):
        (clone / name).write_text(name)
    (clone / ".gitignore").write_text("large.bin")
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    subprocess.run(["git", "add", "setup.py", "experiments/mine.py", "gone.py"], cwd=clone, check=True)
    (clone / "experiments/mine.py").write_text("changed")
    (clone / "gone.py").unlink()
    assert pack(clone, tmp_path / "archive").startswith("4 files, ")
    with tarfile.open(tmp_path / "archive") as tar:
        assert sorted(tar.getnames()) == [".gitignore", "experiments/mine.py", "experiments/new é.py", "setup.py"]
        assert tar.extractfile("experiments/mine.py").read() == b"changed"
