"""The registry of seqio tasks and mixtures: their names, and where each is defined."""

import importlib

import seqio

from stagjax.errors import unknown
from stagjax.rules import COUNT_OR_NONE
from stagjax.tasks import catalog, evaluating

# Name of a pretraining task to the module that registers it when it is imported.
PRETRAINING = {
    "stagjax_stdlib": "stagjax.tasks.pretraining",
}


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks: of pretraining, and the benchmarks."""
    return (*PRETRAINING, *catalog.all_benchmarks())


def get_task(
    name: str, shots: int | None = None, directory: str | None = None, vocabulary: str = "bytes"
) -> seqio.Task:
    """Return a task; it is registered if need be.

    Args:
      name: e.g. "stagjax_stdlib", or a benchmark's; the others are for these.
      shots: examples in a prompt; by default the benchmark's.
      directory: of official files, by default the environment's STAGJAX_DATA_DIR, or data.
      vocabulary: as in an experiment's data.vocabulary.

    Raises:
      UserError: there is no such task; the known ones are listed. Or `shots` is no count, or the vocabulary cannot be
        read.
    """
    if name in PRETRAINING:
        importlib.import_module(PRETRAINING[name])
        return seqio.TaskRegistry.get(name)
    if name not in catalog.all_benchmarks():
        raise unknown("task", name, task_names())
    benchmark = catalog.get(name)
    if shots is not None:
        COUNT_OR_NONE.check("shots", shots)
    full_name = evaluating.task_name(benchmark, shots, directory, vocabulary)
    if full_name not in seqio.TaskRegistry.names():
        shots = benchmark.shots if shots is None else shots
        evaluating.register(full_name, benchmark, shots, directory, vocabulary)
    return seqio.TaskRegistry.get(full_name)


def get_mixture(
    name: str, shots: int | None = None, directory: str | None = None, vocabulary: str = "bytes"
) -> seqio.Mixture:
    """Return the mixture of a group of benchmarks, "superglue", "paper" or "all"; it is registered if need be.

    Benchmarks whose examples are their own (MBPP), or that have none (The Pile), keep their number of shots. Evaluate
    its tasks one by one, as seqio's evaluator does: a mixture samples from them, and ends with the first that does.

    Raises:
      UserError: there is no such group, or the vocabulary cannot be read.
    """
    if name not in catalog.groups():
        raise unknown("mixture", name, catalog.groups())
    full_name = evaluating.mixture_name(name, shots, directory, vocabulary)
    if full_name not in seqio.MixtureRegistry.names():
        members = catalog.select([name])
        tasks = [get_task(b.name, b.shots_of(shots), directory, vocabulary).name for b in members]
        evaluating.register_mixture(full_name, tasks)
    return seqio.MixtureRegistry.get(full_name)
