"""What there is on this machine of each benchmark: files, documents, what is missing. No TensorFlow."""

import os
from collections.abc import Iterable
from typing import Any

from stagjax.errors import DataError
from stagjax.tasks import catalog
from stagjax.tasks.benchmark import Benchmark, Source, Split, read_split


def inventory(benchmarks: Iterable[Benchmark], directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return a row of plain data for each benchmark; files are read whole, so that a malformed one is found here."""
    return [_row(benchmark, directory) for benchmark in benchmarks]


def _row(benchmark: Benchmark, directory: str | os.PathLike[str]) -> dict[str, Any]:
    evaluated, problem = _found(benchmark, benchmark.evaluated, directory)
    pool, pool_problem = None, ""
    if isinstance(benchmark.pool, Split):
        pool, pool_problem = _found(benchmark, benchmark.pool, directory)
    return {
        "name": benchmark.name,
        "groups": [name for name, members in catalog.groups().items() if benchmark.name in members],
        "split": benchmark.evaluated.name,
        "documents": evaluated,
        "problem": problem,
        "examples_from": _pool_name(benchmark),
        "examples": len(benchmark.pool) if isinstance(benchmark.pool, tuple) else pool,
        "examples_problem": pool_problem,
        "shots": benchmark.shots,
        "metrics": [metric.name for metric in benchmark.metrics],
        "executes_programs": benchmark.programs is not None,
        "tensorflow_datasets": benchmark.prepared.name if benchmark.prepared else None,
        "origin": benchmark.origin,
    }


def _found(benchmark: Benchmark, split: Split, directory: str | os.PathLike[str]) -> tuple[dict[str, Any] | None, str]:
    try:
        _, source = read_split(benchmark, split, directory)
    except DataError as error:
        return None, str(error)
    return _described(source), ""


def _described(source: Source) -> dict[str, Any]:
    return {**source._asdict(), "partial": source.partial, "summary": source.describe()}


def _pool_name(benchmark: Benchmark) -> str:
    if isinstance(benchmark.pool, tuple):
        return "its own" if benchmark.pool else "none"
    return benchmark.pool.name if benchmark.pool else benchmark.evaluated.name
