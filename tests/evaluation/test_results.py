"""From outcomes to rows: averages over what every row has, perplexity a token, nothing made up."""

import math

import pytest

from stagjax.evaluation.questions import parse_tasks
from stagjax.evaluation.results import collect, make_row
from stagjax.evaluation.scoring import Settings
from stagjax.evaluation.subjects import Subject
from stagjax.evaluation.sweep import DONE, FAILED, Outcome
from tests.variants import VARIANTS


def subject(name):
    return Subject(name, f"runs/{name}", 4, name * 8, "v", VARIANTS["shared"], 100, None)


def done(**metrics):
    found = {name: {"value": value, "stderr": stderr} for name, (value, stderr) in metrics.items()}
    return Outcome(DONE, "k", {"metrics": found})


def test_averages_are_over_tasks_that_all_rows_have():
    asked = parse_tasks(["copa", "cb", "squadv2", "rte", "pile"], None)
    rows = [make_row(subject(name), Settings(), None, asked) for name in "ab"]
    pile = done(nats_per_token=(2.0, 0.1), bits_per_byte=(1.0, 0.1))
    outcomes = [
        *(done(acc=(0.5, 0.03)), done(acc=(0.9, 0.1)), done(f1=(40.0, 4.0)), done(acc=(None, None)), pile),
        *(done(acc=(0.7, 0.03)), Outcome(FAILED, reason="none"), done(f1=(20.0, 4.0)), done(acc=(0.1, 0.1)), pile),
    ]
    results = collect(rows, outcomes)
    # CB failed in one row, RTE is no number in the other; SQuAD counts percent, and perplexity has no best score.
    assert results["averaged"] == ["copa", "squadv2"]
    first, second = results["rows"]
    assert first["average"]["value"] == pytest.approx(0.45) and second["average"]["value"] == pytest.approx(0.45)
    assert first["average"]["stderr"] == pytest.approx(math.hypot(0.03, 0.04) / 2)
    assert first["pile_perplexity"]["value"] == pytest.approx(math.e**2)
    assert first["pile_perplexity"]["stderr"] == pytest.approx(0.1 * math.e**2)
    assert second["cells"]["cb"] == {"status": "failed", "key": "", "reason": "none", "by_input": False}


def test_without_a_common_task_there_is_no_average():
    asked = parse_tasks(["copa"], None)
    rows = [make_row(subject(name), Settings(), None, asked) for name in "ab"]
    results = collect(rows, [done(acc=(0.5, 0.1)), Outcome(FAILED, reason="none")])
    assert results["averaged"] == [] and [row["average"] for row in results["rows"]] == [None, None]
    assert results["rows"][0]["pile_perplexity"] is None
