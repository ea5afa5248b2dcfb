"""Two processes, each with a device, answer as one does: rows are divided over them, and both know all answers."""

import json
import subprocess
import sys

import pytest

from stagjax.hosts.place import Place, as_environment
from stagjax.mesh import DecodeMesh
from tests.compiling import environment
from tests.evaluation import lockstep
from tests.evaluation.models import close
from tests.waits import HANG, reserved


def _run(count, *arguments):
    held = reserved()
    coordinator = f"127.0.0.1:{held.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.evaluation.lockstep", *arguments],
            env=environment() | as_environment(Place(index, count, coordinator)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        return [json.loads(process.communicate(timeout=HANG)[0].splitlines()[-1]) for process in processes]
    finally:
        held.close()
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("decoding", ["parallel", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_processes_answer_in_lockstep(decoding):
    first, second = _run(2, decoding)
    assert first == second
    alone = json.loads(json.dumps(lockstep.answers(decoding, DecodeMesh())))
    close([answer[0] for answer in first[:3]], [answer[0] for answer in alone[:3]])
    assert [answer[1:] for answer in first[:3]] == [answer[1:] for answer in alone[:3]]
    assert first[3:] == alone[3:]
