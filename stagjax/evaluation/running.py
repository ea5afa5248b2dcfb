"""One task of one model: requests answered in portions, programs executed, scores logged, metrics with their errors."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stagjax.errors import RunFailed, UserError
from stagjax.evaluation import lockstep
from stagjax.evaluation.cells import Log
from stagjax.evaluation.execution import run_each
from stagjax.evaluation.questions import Questions, requests_digest
from stagjax.evaluation.sandbox import Isolation, Limits
from stagjax.evaluation.scoring import Scorer, Settings
from stagjax.tasks.benchmark import Item
from stagjax.tasks.requests import Answer, GenerationRequest, Outcomes, RollingRequest

PORTION = 4096
"""Requests after which the log is written: a killed run repeats at most these. Fewer would fill batches worse."""


def settings_of(questions: Questions, settings: Settings, limits: Limits) -> dict[str, Any]:
    """Return those settings that decide the answers to these questions: what does not is not part of a cell's key."""
    requests = [request for item in questions.items for request in item.requests]
    found: dict[str, Any] = {"decoding": settings.decoding}
    if any(isinstance(request, RollingRequest) for request in requests):
        found["documents"] = settings.documents
    if any(isinstance(request, GenerationRequest) for request in requests):
        found["stop"] = settings.stop
    if any(isinstance(request, GenerationRequest) and request.temperature for request in requests):
        found["seed"] = settings.seed
    if questions.benchmark.programs is not None:
        found["limits"] = dataclasses.asdict(limits)
    return found


def run_task(
    questions: Questions,
    scorer: Scorer,
    log: Log | None,
    on_progress: Callable[[int], None],
    between: Callable[[], None] = lambda: None,
    isolation: Isolation | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> dict[str, Any]:
    """Answer and score a task; return its metrics and what goes with them, ready for JSON.

    With several processes all of them call it alike; the first one keeps the log, executes programs, and gets the
    result.

    Args:
      questions: what is asked.
      scorer: of the model.
      log: of the cell, whose lines are not made again; None in all processes but the first.
      on_progress: called with the number of requests answered so far, those in the log included.
      between: called before every portion; what it raises ends the work, and the log keeps what was done.
      isolation: of programs, where the task has any.
      limits: of each program.

    Raises:
      UserError: a request that cannot be answered.
      RunFailed: the sandbox broke down, or the log cannot be written.
    """
    portions = list(_portions(questions.items))
    lines = log.lines([len(portion) for portion in portions]) if log else []
    resumed = lockstep.told_by_first(len(lines))
    done, first, begun = 0, 0, time.perf_counter()
    answered = 0
    for portion in portions:
        first += len(portion)
        count = sum(len(item.requests) for item in portion)
        if first > resumed:
            between()
            requests = [request for item in portion for request in item.requests]
            answers = _by_item(portion, scorer.answer(requests, lambda n, _, done=done: on_progress(done + n)))
            answered += len(portion)
            lines += _logged(
                log, lambda portion=portion, answers=answers: _lines(questions, portion, answers, isolation, limits)
            )
        done += count
        on_progress(done)
    seconds = time.perf_counter() - begun
    return _result(questions, lines, answered, seconds) if log else {}


def _portions(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield documents whose requests make a portion; where it ends depends on nothing but the documents."""
    portion, count = [], 0
    for item in items:
        portion.append(item)
        count += len(item.requests)
        if count >= PORTION:
            yield portion
            portion, count = [], 0
    if portion:
        yield portion


def _logged(log: Log | None, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Make and keep the lines of a portion in the first process; what fails there fails in all of them."""
    lines, error = [], None
    if log:
        try:
            # As they are read from the log, so that results do not depend on whether they were.
            lines = json.loads(json.dumps(make()))
            log.append(lines)
        except (UserError, RunFailed) as raised:
            error = raised
    told = lockstep.told_by_first(str(error) if error else "")
    if told:
        raise error or RunFailed(told)
    return lines


def _by_item(items: Sequence[Item], answers: Sequence[Answer]) -> list[list[Answer]]:
    found = iter(answers)
    return [[next(found) for _ in item.requests] for item in items]


def _lines(
    questions: Questions,
    portion: Sequence[Item],
    answers: Sequence[list[Answer]],
    isolation: Isolation | None,
    limits: Limits,
) -> list[dict[str, Any]]:
    """Return the log of a portion: for each document what was answered, and its scores."""
    benchmark = questions.benchmark
    reasons: list[list[str]] = [[] for _ in portion]
    if benchmark.programs is not None:
        programs = [benchmark.programs(item.document, found) for item, found in zip(portion, answers, strict=True)]
        outcomes = run_each(programs, limits, isolation)
        reasons = [[outcome.reason for outcome in of_item] for of_item in outcomes]
        passed = [Outcomes(tuple(outcome.passed for outcome in of_item)) for of_item in outcomes]
        answers = [[*found, outcome] for found, outcome in zip(answers, passed, strict=True)]
    lines = []
    for item, found, why in zip(portion, answers, reasons, strict=True):
        line = {
            "index": item.index,
            "examples": list(item.examples),
            "requests_sha256": requests_digest(item),
            "answers": [answer._asdict() for answer in found],
            "scores": dict(benchmark.score(item.document, found)),
        }
        lines.append({**line, "outcomes": why} if why else line)
    return lines


def _result(questions: Questions, lines: Sequence[Mapping[str, Any]], answered: int, seconds: float) -> dict[str, Any]:
    benchmark = questions.benchmark
    estimates = benchmark.aggregate([line["scores"] for line in lines])
    cut = [answer.get("num_truncated", 0) > 0 for line in lines for answer in line["answers"]]
    return {
        "task": benchmark.name,
        "shots": questions.task.shots,
        "metrics": {
            name: {"value": _finite(estimate.value), "stderr": _finite(estimate.stderr)}
            for name, estimate in estimates.items()
        },
        "documents": len(lines),
        "requests": questions.num_requests,
        "truncated": sum(cut),
        "sources": [
            {**source._asdict(), "partial": source.partial, "summary": source.describe()}
            for source in questions.sources
        ],
        "timed_documents": answered,
        "seconds": seconds,
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
