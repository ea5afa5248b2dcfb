"""What is asked of every model alike: a benchmark's documents and prompts, and a hash of all of it."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from stagjax.errors import UserError
from stagjax.rules import COUNT, COUNT_OR_NONE, TEMPERATURE, is_whole
from stagjax.tasks import catalog
from stagjax.tasks.benchmark import Benchmark, Item, Source, load


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark and how it is asked.

    Attributes:
      benchmark: its name.
      shots: examples in a prompt.
      limit: documents, the first ones; None is all.
      samples: answers to each generation request.
      temperature: of generation, 0 is greedy.
    """

    benchmark: str
    shots: int
    limit: int | None = None
    samples: int = 1
    temperature: float = 0.0

    def check(self) -> None:
        """Raise `UserError` for values out of range."""
        COUNT_OR_NONE.check("shots", self.shots)
        if self.limit is not None:
            COUNT.check("limit", self.limit)
        COUNT.check("samples", self.samples)
        TEMPERATURE.check("temperature", self.temperature)


class Questions(NamedTuple):
    """The prompts of a task.

    Attributes:
      task: whose.
      benchmark: that of the task.
      items: documents with their requests.
      sources: the files that were read.
      fingerprint: hex digest of the benchmark's name, the documents and all that is asked about them.
      own_examples: documents that have themselves among their examples, and with it their answer.
    """

    task: Task
    benchmark: Benchmark
    items: Sequence[Item]
    sources: tuple[Source, ...]
    fingerprint: str
    own_examples: int = 0

    @property
    def num_requests(self) -> int:
        """How many requests there are in all."""
        return sum(len(item.requests) for item in self.items)


class Asked(NamedTuple):
    """A benchmark as it was asked for.

    Attributes:
      label: its name, with "@SHOTS" where they were given with it.
      benchmark: which.
      shots: examples in a prompt.
    """

    label: str
    benchmark: Benchmark
    shots: int


def parse_tasks(names: Sequence[str], shots: int | None) -> list[Asked]:
    """Return benchmarks with their shots, each once, in order.

    Args:
      names: of benchmarks or groups of them, each also as "NAME@SHOTS".
      shots: of those named without; None is each benchmark's default. Benchmarks with examples of their own, or none,
        keep theirs.

    Raises:
      UserError: no name, an unknown one, or shots that are no number.
    """
    if not names:
        raise UserError("no task is named; use e.g. hellaswag, superglue or paper")
    found: dict[str, Asked] = {}
    for name in names:
        plain, at, own = name.partition("@")
        if at and not is_whole(own):
            raise UserError(f"task {name!r}: {own!r} is no number of shots; use e.g. {plain}@5")
        for benchmark in catalog.select([plain]):
            label = f"{benchmark.name}{at}{own}"
            found.setdefault(label, Asked(label, benchmark, int(own) if at else benchmark.shots_of(shots)))
    return list(found.values())


def prepare(task: Task, data_dir: str | os.PathLike[str]) -> Questions:
    """Read a task's documents and make its prompts.

    Raises:
      DataError: a file is missing or malformed.
      UserError: more shots than examples, or values out of range.
    """
    task.check()
    benchmark = catalog.get(task.benchmark)
    data = load(benchmark, data_dir, pool=task.shots > 0)
    items = benchmark.items(data, task.shots, limit=task.limit, samples=task.samples, temperature=task.temperature)
    own = sum(any(data.pool[position] == item.document for position in item.examples) for item in items)
    return Questions(task, benchmark, items, data.sources, _fingerprint(benchmark, items), own)


def requests_digest(item: Item) -> str:
    """Return a hex digest of what is asked about a document."""
    asked = [[type(request).__name__, dataclasses.asdict(request)] for request in item.requests]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _fingerprint(benchmark: Benchmark, items: Sequence[Item]) -> str:
    # Documents count too: they hold the right answers, and what scores are divided by.
    total = hashlib.sha256(benchmark.name.encode())
    for item in items:
        line = [item.index, item.document, requests_digest(item)]
        total.update(b"\n" + json.dumps(line, sort_keys=True).encode())
    return total.hexdigest()
