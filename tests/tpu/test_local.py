"""The local target: the restart rules with real processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.test_local_processes import alive, children
from tests.waits import HANG, eventually
from tpu import cli
from tpu.local import LocalTarget

ROOT = pathlib.Path(__file__).parent.parent.parent

# Each attempt of each process adds a line to NOTES, and then does what the test says.
NOTE = """
import os, pathlib, signal, sys, time
me = int(os.environ["STAGJAX_PROCESS_ID"])
notes = pathlib.Path(sys.argv[1])
with (notes / f"{me}").open("a") as file:
    file.write(os.environ["STAGJAX_COORDINATOR"] + " " + os.environ["STAGJAX_NUM_PROCESSES"] + "\\n")
attempt = len((notes / f"{me}").read_text().splitlines())
secret = pathlib.Path(os.environ["STAGJAX_SECRET_FILE"])
with (notes / f"secret-{me}").open("a") as file:
    file.write(f"{secret} {secret.stat().st_mode & 0o777:o} {secret.read_text()}")
print("attempt", attempt, "of", me, flush=True)
(notes / f"here-{me}").touch()

def after(name):
    while not (notes / name).exists():
        time.sleep(0.01)
"""
WAIT = f"time.sleep({HANG})\n"
SAVE = """
def save(number, frame):
    (notes / f"saved-{me}-{attempt}").write_text(str(number))
    sys.exit(75 if number == signal.SIGTERM else 130)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
(notes / f"ready-{me}-{attempt}").touch()
"""


def launch(tmp_path, program, *flags, processes=2):
    (tmp_path / "notes").mkdir(exist_ok=True)
    (tmp_path / "program.py").write_text(NOTE + program)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tpu", "local", "run", f"--processes={processes}", f"--logs={tmp_path / 'logs'}"),
            *("--backoff=0.05", "--max-restarts=2", f"--grace={HANG}", *flags, "--"),
            *(sys.executable, str(tmp_path / "program.py"), str(tmp_path / "notes")),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def run(tmp_path, program, *flags, processes=2):
    process = launch(tmp_path, program, *flags, processes=processes)
    out, err = process.communicate(timeout=HANG)
    assert "Traceback" not in err, err
    return process.returncode, out


def attempts(tmp_path, index):
    return (tmp_path / "notes" / str(index)).read_text().splitlines()


def test_all_done(tmp_path):
    status, out = run(tmp_path, "", processes=3)
    assert status == 0 and out.rstrip().endswith("done")
    lines = [attempts(tmp_path, n) for n in range(3)]
    assert lines[0] == lines[1] == lines[2] and len(lines[0]) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+ 3", lines[0][0])


def test_one_that_is_preempted_starts_all_again(tmp_path):
    preempted = (
        SAVE + "if me == 1 and attempt == 1:\n    after('ready-0-1')\n    sys.exit(75)\nif attempt == 1:\n    " + WAIT
    )
    status, out = run(tmp_path, preempted)
    assert status == 0
    assert "worker 1 ended with 75 (preempted and saved)" in out
    assert len(attempts(tmp_path, 0)) == len(attempts(tmp_path, 1)) == 2
    # The other was asked to save, and a new attempt has a new coordinator.
    assert (tmp_path / "notes" / "saved-0-1").read_text() == str(int(signal.SIGTERM))
    assert attempts(tmp_path, 0)[0] != attempts(tmp_path, 0)[1]
    # So have they another secret, the same for both, in a file that is theirs alone and gone in the end.
    secrets = [(tmp_path / "notes" / f"secret-{index}").read_text().splitlines() for index in range(2)]
    assert secrets[0] == secrets[1] and len({line.split()[2] for line in secrets[0]}) == 2
    for path, mode, held in map(str.split, secrets[0]):
        assert re.fullmatch("[0-9a-f]{64}", held) and mode == "600" and not pathlib.Path(path).exists()
        assert held not in out
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert re.findall(r"attempt (\d) of 1", log) == ["1", "2"]
    assert "of 0" not in log


def test_one_that_is_killed_starts_all_again_though_others_call_it_a_failure(tmp_path):
    lost = """
if attempt == 1 and me == 0:
    killed = notes / "killed"
    try:
        while not killed.exists() or not killed.read_text() or os.kill(int(killed.read_text()), 0) is None:
            time.sleep(0.01)
    except ProcessLookupError:
        sys.exit(3)  # the launcher knows of its end
if attempt == 1:
    after("here-0")
    (notes / "killed").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    status, out = run(tmp_path, lost)
    assert status == 0
    assert "worker 1 ended with 137 (signal 9)" in out
    assert len(attempts(tmp_path, 0)) == 2


@pytest.mark.parametrize("code", [1, 2, 3])
def test_failures_are_final(tmp_path, code):
    failing = f"if me == 1:\n    after('here-0')\n    print('what was wrong')\n    sys.exit({code})\n"
    status, out = run(tmp_path, failing + WAIT)
    assert status == code
    assert "): what was wrong\n" in out
    assert len(attempts(tmp_path, 0)) == 1
    assert f"not started again: status {code} would come again" in out
    assert str(tmp_path / "logs" / "worker-1.log") in out


def test_restarts_run_out(tmp_path):
    status, out = run(tmp_path, "sys.exit(75)", processes=1)
    assert status == 75
    assert len(attempts(tmp_path, 0)) == 3  # and two restarts
    assert "given up after 2 restarts in a row" in out


def test_a_status_that_the_user_adds(tmp_path):
    status, _ = run(tmp_path, "sys.exit(3 if attempt == 1 else 0)", "--restart-on=3", processes=1)
    assert status == 0
    assert len(attempts(tmp_path, 0)) == 2


def test_what_does_not_listen_is_killed_with_its_children(tmp_path):
    deaf = """
import subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if me == 0:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (notes / "child").write_text(str(child.pid))
if me == 1:
    after("child")
    sys.exit(2)
"""
    status, _ = run(tmp_path, deaf + WAIT, "--grace=0.5")
    assert status == 2
    child = int((tmp_path / "notes" / "child").read_text())
    assert eventually(lambda: not alive([child])), "what is killed takes its time to end"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_launcher_that_is_told_to_stop_lets_all_save(tmp_path, number, status):
    process = launch(tmp_path, SAVE + WAIT)
    assert eventually(lambda: len(list((tmp_path / "notes").glob("ready-*"))) == 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == status
    assert {path.name for path in (tmp_path / "notes").glob("saved-*")} == {"saved-0-1", "saved-1-1"}
    assert (tmp_path / "notes" / "saved-0-1").read_text() == str(int(number))
    assert "started, attempt 2" not in out


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    process = launch(tmp_path, SAVE + WAIT)
    assert eventually(lambda: len(list((tmp_path / "notes").glob("ready-*"))) == 2)
    started = children(process.pid)
    assert len(started) == 2
    process.kill()
    process.communicate(timeout=HANG)
    assert eventually(lambda: not alive(started))


def test_forced_devices_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag=1")
    target = LocalTarget(["stagjax", "info"], 2, tmp_path, devices=4, environment={"A": "b"})
    told = target.environments("127.0.0.1:1")
    assert told[1] == {
        "A": "b",
        "XLA_FLAGS": "--some_flag=1 --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "STAGJAX_COORDINATOR": "127.0.0.1:1",
        "STAGJAX_NUM_PROCESSES": "2",
        "STAGJAX_PROCESS_ID": "1",
        "STAGJAX_SECRET_FILE": "FILE",
    }
    assert target.command == [sys.executable, "-m", "stagjax", "info"]


def run_line(tmp_path, *line):
    return subprocess.run(
        [sys.executable, "-m", "tpu", "local", "run", f"--logs={tmp_path}", "--", *line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


def test_a_dry_run_names_the_secret_and_makes_none(tmp_path, capsys):
    assert cli.main(["local", "run", "--dry-run", f"--logs={tmp_path}", "--", "stagjax", "info"]) == 0
    assert " STAGJAX_SECRET_FILE=FILE " in capsys.readouterr().out


def test_a_command_that_is_not_there(tmp_path):
    done = run_line(tmp_path, "/nothing")
    assert done.returncode == 2
    assert done.stderr == "tpu: '/nothing' cannot be started: No such file or directory; correct what follows --\n"


def test_the_real_command(tmp_path):
    done = run_line(tmp_path, "stagjax", "info", "--config=experiments/stdlib.py:no_such_variant")
    assert done.returncode == 2
    assert "unknown variant 'no_such_variant'" in (tmp_path / "worker-0.log").read_text()
