"""Processes of this machine as hosts of one cluster: real ones, over the loopback network."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from stagjax import local_processes
from stagjax.errors import UserError
from stagjax.hosts.place import Place, told
from tests.compiling import environment
from tests.waits import HANG, eventually

COMMAND = (sys.executable, "-m", "stagjax", "bench", "decode")
TINY = "--config=experiments/stdlib.py:separate_2x3,runlocal"
SHORT = ("--local-processes=2", "--repeats=2", "--tokens=4", "--split=none", "--no-prefill")


def start(*arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, TINY, *SHORT, *arguments], **pipes, env=environment())


def children(pid):
    """Return the processes that a process has started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pids):
    return [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists() and not is_zombie(pid)]


def is_zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "two"
    process = start("--against=baseline,baseline_slice", f"--output={output}")
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    assert "STAGJAX_SECRET_FILE" not in err  # they share a secret, of which there is nothing to say
    return output, out


def test_slices_are_processes(measured):
    output, out = measured
    result = json.loads((output / "results.json").read_text())
    assert result["complete"]
    assert (result["machine"]["processes"], result["machine"]["devices"]) == (2, 2)
    assert result["machine"]["cores_per_process"] == os.cpu_count() // 2
    meshes = {row["role"]: (row["mesh"]["stack"], row["mesh"]["tensor"]) for row in result["rows"]}
    assert meshes == {"model": (2, 1), "baseline": (1, 2), "baseline_slice": (1, 1)}
    assert all(row["measured"]["median_ms"] > 0 for row in result["rows"])
    # The first process speaks, once; gloo's greeting and the other's tables are not heard.
    assert out.count("written to") == 1 and "Gloo" not in out


def test_results_are_never_overwritten(measured):
    output, _ = measured
    before = (output / "results.json").read_bytes()
    process = start(f"--output={output}")
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert err == f"stagjax: --output={output} holds the results of another run; choose another directory\n"
    assert (output / "results.json").read_bytes() == before


def test_an_error_is_told_once():
    process = start("--against=nothing")
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert len(re.findall("unknown --against 'nothing'", err)) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_launched_it(how):
    process = start()
    assert eventually(lambda: len(children(process.pid)) == 2)
    started = children(process.pid)
    time.sleep(1.0)  # in the midst of starting up
    process.send_signal(how)
    process.communicate(timeout=HANG)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert eventually(lambda: not alive(started))


def test_a_process_that_dies_ends_the_others():
    process = start()
    assert eventually(lambda: len(children(process.pid)) == 2)
    os.kill(max(children(process.pid)), signal.SIGKILL)
    process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGKILL


def test_more_processes_than_cores():
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=rf"--local-processes={cores + 1} is outside 1..{cores}, the cores"):
        local_processes.check(cores + 1)
    with pytest.raises(UserError, match="outside"):
        local_processes.check(0)


def test_who_a_process_is(monkeypatch):
    monkeypatch.delenv("STAGJAX_LOCAL_PROCESS", raising=False)
    assert not local_processes.is_one()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --other=1")
    place = Place(1, 2, "127.0.0.1:4000")
    for own_cores in (True, False):
        for name, value in local_processes._environment(place, devices=4, own_cores=own_cores).items():
            monkeypatch.setenv(name, value)
        assert local_processes.is_one()
        assert local_processes.has_own_cores() == own_cores
    assert told() == place
    assert os.environ["XLA_FLAGS"].endswith(" --xla_force_host_platform_device_count=4")
