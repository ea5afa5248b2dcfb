"""Programs of documents: which are run, how often, and whose results they are."""

import os
import sys

import pytest

from stagjax.errors import UserError
from stagjax.evaluation import execution, sandbox


def test_equal_programs_are_run_once_and_results_are_nested_as_programs_are(monkeypatch):
    ran = []

    def run(programs, limits, workers, isolation):
        ran.extend(programs)
        return [sandbox.Outcome("right" in program, program, "", 0.0, "") for program in programs]

    monkeypatch.setattr(sandbox, "run_programs", run)
    outcomes = execution.run_each([["right 1", "wrong 1", "right 1"], [], ["right 3"]])
    assert ran == ["right 1", "wrong 1", "right 3"]
    assert [[outcome.passed for outcome in those] for those in outcomes] == [[True, False, True], [], [True]]
    assert outcomes[0][0].reason == "right 1" and outcomes[2][0].reason == "right 3"


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
def test_problems_of_a_benchmark():
    """In the format of MBPP, whose tests are lines and whose answers may end in a carriage return."""
    try:
        sandbox.find_isolation()
    except UserError as error:
        pytest.skip(str(error))
    tests = ["assert add(1, 2) == 3\nassert add(0, 0) == 0", "assert first('ab') == 'a'"]
    samples = [
        ["def add(a, b):\r\n  return a + b", "def add(a, b):\n  return 3", "def add(a, b) return a"],
        ["import re\ndef first(text):\n  return re.match('.', text)[0]", f"import os\nos.kill({os.getpid()}, 9)"],
    ]
    outcomes = execution.run_each([[f"{one}\n{test}" for one in of] for of, test in zip(samples, tests, strict=True)])
    assert [[outcome.passed for outcome in those] for those in outcomes] == [[True, False, False], [True, False]]
