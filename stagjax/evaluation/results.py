"""From finished cells to rows: what tables, pictures and results.json show, as plain data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from stagjax.evaluation.questions import Asked, Task
from stagjax.evaluation.scoring import Settings
from stagjax.evaluation.subjects import Subject
from stagjax.evaluation.sweep import DONE, Outcome, Work
from stagjax.tasks import catalog

FORMAT = 1
PILE, NATS = "pile", "nats_per_token"


class Row(NamedTuple):
    """A line of the table before it is filled.

    Attributes:
      subject: the model.
      settings: its decoding mode, and what else decides answers.
      shots: as asked for, None for each benchmark's default.
      works: what is to be done, by the labels of tasks.
    """

    subject: Subject
    settings: Settings
    shots: int | None
    works: dict[str, Work]


def collect(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return results as plain data.

    The average is over those tasks with a best possible score that every row has: accuracies and the like, each as its
    share of that score. Its standard error takes tasks for independent.

    Args:
      rows: in the order of the table.
      outcomes: of `[work for row in rows for work in row.works.values()]`, in order.
    """
    waiting = iter(outcomes)
    filled = [_filled(row, {label: next(waiting) for label in row.works}) for row in rows]
    tasks = _tasks(rows)
    averaged = [
        task["label"]
        for task in tasks
        if task["perfect"] and all(_value(row, task["label"], task["metric"]) for row in filled)
    ]
    for row in filled:
        row["average"] = _average(row, [task for task in tasks if task["label"] in averaged])
        row["pile_perplexity"] = _token_perplexity(row)
    return {"format": FORMAT, "tasks": tasks, "averaged": averaged, "rows": filled}


def _filled(row: Row, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    cells = {}
    for label, outcome in outcomes.items():
        facts = {"status": outcome.status, "key": outcome.key, "reason": outcome.reason, "by_input": outcome.by_input}
        cells[label] = facts | (outcome.result or {})
    return {
        **row.subject.to_dict(),
        "decoding": row.settings.decoding,
        "scored_by": row.settings.scored_by,
        "shots": row.shots,
        "cells": cells,
    }


def _tasks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    labels = dict.fromkeys(label for row in rows for label in row.works)
    tasks = []
    for label in labels:
        benchmark = catalog.get(label.partition("@")[0])
        main = benchmark.metrics[0]
        tasks.append(
            {
                "label": label,
                "benchmark": benchmark.name,
                "metric": main.name,
                "higher_is_better": main.higher_is_better,
                "perfect": main.perfect,
                "metrics": [metric.name for metric in benchmark.metrics],
            }
        )
    return tasks


def _value(row: dict[str, Any], label: str, metric: str) -> dict[str, Any] | None:
    """Return an estimate of a row, None where there is none, or none that is a number."""
    cell = row["cells"].get(label)
    if cell is None or cell["status"] != DONE:
        return None
    found = cell["metrics"].get(metric)
    return found if found and found["value"] is not None else None


def _average(row: dict[str, Any], tasks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not tasks:
        return None
    found = [(_value(row, task["label"], task["metric"]), task["perfect"]) for task in tasks]
    errors = [estimate["stderr"] and estimate["stderr"] / perfect for estimate, perfect in found]
    known = all(error is not None for error in errors)
    return {
        "value": sum(estimate["value"] / perfect for estimate, perfect in found) / len(found),
        "stderr": math.sqrt(sum(error**2 for error in errors)) / len(found) if known else None,
    }


def _token_perplexity(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return exp(nats a token) on The Pile, by the delta method with its error."""
    nats = _value(row, PILE, NATS)
    if nats is None or nats["value"] > 700:
        return None
    value = math.exp(nats["value"])
    return {"value": value, "stderr": None if nats["stderr"] is None else value * nats["stderr"]}


def make_row(subject: Subject, settings: Settings, shots: int | None, asked: Sequence[Asked], **options: Any) -> Row:
    """Return a row that asks tasks of a model; `options` are those of a `Task`: limit, samples, temperature.

    Raises:
      UserError: options out of range.
    """
    works = {one.label: Work(subject, Task(one.benchmark.name, one.shots, **options), settings) for one in asked}
    for work in works.values():
        work.task.check()
    return Row(subject, settings, shots, works)
