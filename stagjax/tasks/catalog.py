"""All benchmarks by name: those in `stagjax/tasks/benchmarks`, and those that are registered besides. No TensorFlow."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping

from stagjax.errors import unknown
from stagjax.tasks import benchmarks as package
from stagjax.tasks.benchmark import Benchmark

SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
# What the paper's table has, in its words, and in an order of our own.
PAPER = (
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    *SUPERGLUE,
    "mbpp",
    "lambada_openai",
    "squadv2",
    "pile",
)
_REGISTERED: dict[str, Benchmark] = {}


def register(*benchmarks: Benchmark) -> None:
    """Add benchmarks that do not lie in the package.

    Raises:
      ValueError: a name is taken.
    """
    for benchmark in benchmarks:
        if benchmark.name in all_benchmarks() or benchmark.name in groups():
            raise ValueError(f"there is a benchmark or group {benchmark.name!r} already")
        _REGISTERED[benchmark.name] = benchmark


def all_benchmarks() -> Mapping[str, Benchmark]:
    """Return all benchmarks by name."""
    return {**_packaged(), **_REGISTERED}


def groups() -> Mapping[str, tuple[str, ...]]:
    """Return the names that stand for several benchmarks."""
    return {"superglue": SUPERGLUE, "paper": PAPER, "all": tuple(all_benchmarks())}


def get(name: str) -> Benchmark:
    """Return a benchmark; raises `UserError` where there is none of that name."""
    known = all_benchmarks()
    if name not in known:
        raise unknown("benchmark", name, known)
    return known[name]


def select(names: Iterable[str]) -> tuple[Benchmark, ...]:
    """Return benchmarks by their names or groups' names, each once, in order; raises `UserError` for an unknown one."""
    known = {**groups(), **{name: (name,) for name in all_benchmarks()}}
    chosen: dict[str, Benchmark] = {}
    for name in names:
        if name not in known:
            raise unknown("benchmark", name, known)
        chosen |= {member: get(member) for member in known[name]}
    return tuple(chosen.values())


@functools.cache
def _packaged() -> Mapping[str, Benchmark]:
    found: dict[str, Benchmark] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        for benchmark in getattr(importlib.import_module(f"{package.__name__}.{module}"), "BENCHMARKS", ()):
            if benchmark.name in found:
                raise ValueError(f"two benchmarks are called {benchmark.name!r}")
            found[benchmark.name] = benchmark
    return found
