"""Answers that are programs: each run with its tests, equal ones once."""

from collections.abc import Sequence

from stagjax.evaluation import sandbox


def run_each(
    programs: Sequence[Sequence[str]],
    limits: sandbox.Limits | None = None,
    isolation: sandbox.Isolation | None = None,
    workers: int | None = None,
) -> list[list[sandbox.Outcome]]:
    """Run programs, tests included; return what became of each, nested as they are. Equal programs are run once.

    Args:
      programs: of each document, one for each sample.
      limits: for each program.
      isolation: by default `sandbox.find_isolation()`.
      workers: programs at the same time; by default one for each core.

    Raises:
      UserError: nothing isolates programs here (see `sandbox.find_isolation`).
      RunFailed: the sandbox itself broke down.
    """
    distinct = list(dict.fromkeys(program for those in programs for program in those))
    found = sandbox.run_programs(distinct, limits, workers=workers, isolation=isolation) if distinct else []
    outcomes = dict(zip(distinct, found, strict=True))
    return [[outcomes[program] for program in those] for those in programs]
