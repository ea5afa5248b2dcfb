"""From samples to pass@k."""

import itertools
import os
import sys

import pytest

from stagjax.errors import UserError
from stagjax.evaluation import execution, sandbox


@pytest.mark.parametrize(("samples", "passed"), [(1, 0), (1, 1), (5, 0), (5, 2), (7, 6), (7, 7)])
def test_pass_at_k_is_the_mean_over_all_draws(samples, passed):
    drawn = [True] * passed + [False] * (samples - passed)
    for k in range(1, samples + 1):
        draws = [any(draw) for draw in itertools.combinations(drawn, k)]
        assert execution.pass_at_k(samples, passed, k) == pytest.approx(sum(draws) / len(draws), abs=1e-15)


def test_pass_at_k_of_many_samples():
    assert execution.pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-12)


def test_pass_at_k_needs_samples():
    with pytest.raises(UserError, match="pass@10 needs at least 10 samples of each problem and k of 1 or more, not 5"):
        execution.pass_at_k(5, 1, 10)
    with pytest.raises(UserError, match="pass@0 needs"):
        execution.pass_at_k(5, 1, 0)
    with pytest.raises(ValueError, match="6 of 5 samples"):
        execution.pass_at_k(5, 6, 1)


def test_samples_are_run_with_their_tests(monkeypatch):
    """Without a sandbox: which programs are run, how often, and whose results they are."""
    ran, told = [], []

    def run(programs, limits, on_progress, workers):
        ran.extend(programs)
        for done in range(len(programs)):
            on_progress(done + 1)
        return [sandbox.Outcome("right" in program, program, "", 0.0, "") for program in programs]

    monkeypatch.setattr(sandbox, "run_programs", run)
    samples = [["right", "wrong", "right"], [], ["right"]]
    outcomes = execution.run_samples(samples, ["one", "two", "three"], on_progress=lambda *counts: told.append(counts))
    assert ran == ["right\none", "wrong\none", "right\nthree"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [[outcome.passed for outcome in those] for those in outcomes] == [[True, False, True], [], [True]]
    assert outcomes[0][0].reason == "right\none" and outcomes[2][0].reason == "right\nthree"
    with pytest.raises(ValueError, match="zip"):
        execution.run_samples(samples, ["one"])


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
    outcomes = execution.run_samples(samples, tests)
    assert [[outcome.passed for outcome in those] for those in outcomes] == [[True, False, False], [True, False]]
