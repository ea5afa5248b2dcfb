"""`stagjax sweep`: checkpoints x tasks x shots x decoding modes, and one table of them."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from stagjax.cli.evaluation_run import Run, add_data_argument, add_run_arguments, status_of
from stagjax.cli.hosts import launch, launches

EPILOG = """\
examples:
  stagjax sweep --config=experiments/sweep.py:runs --output=runs/sweep --data-dir=/data/benchmarks
  stagjax sweep --config=sweep.json --output=runs/sweep --allow-code-execution --mesh=data=2,tensor=4

--output=DIR gets results.json, table.md, table.csv, pictures and report.html, which opens offline; and cells/, a file
for every finished cell and the log of its samples. Cells are known by the content of the checkpoint, everything that
is asked and the settings, never by a name: what is finished is not made again, what has changed is, and the same
command goes on after Ctrl-C, SIGTERM or SIGKILL.

Several processes may run the same sweep on one --output (a file system with locks): each takes cells that no other one
works on. The hosts of a pod, and --local-processes=N, are one mesh and work on every cell together.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.py[:ARG]|FILE.json", help="the sweep; see experiments/sweep.py")
    add("--output", required=True, type=pathlib.Path, metavar="DIR", help="of results, reports and cells")
    add_data_argument(parser, "the sweep's data_dir, ")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Make what is missing, and report on all of it.

    Raises:
      UserError: a config that is none, no such checkpoint, or options that do not fit.
    """
    import dataclasses

    from stagjax.cli import refuse_overrides
    from stagjax.evaluation.plan import load_plan
    from stagjax.tasks.benchmark import data_directory

    refuse_overrides(args)
    plan = load_plan(args.config)
    plan = dataclasses.replace(plan, data_dir=data_directory(args.data_dir or plan.data_dir))
    from stagjax.reporting.plots import require_matplotlib

    require_matplotlib()
    if launches(args):
        return launch(args, grace=None)  # what is under way ends its batch, and is kept

    from stagjax.evaluation.latencies import read_bench

    benches = {path: read_bench(path) for path in plan.bench}
    made = Run(args, plan.data_dir)
    rows, notes = plan.rows()
    again = f"what is finished is in {args.output}; the same command goes on"
    results = made.results(rows, args.output / "cells", again)
    results["notes"] += notes
    results["notes"] += _add_latencies(rows, results, benches)
    if made.first:
        _report(results | {"plan": dataclasses.asdict(plan)}, args.output)
    return status_of(results)


def _add_latencies(rows: Sequence[Any], results: dict[str, Any], benches: dict[str, Any]) -> list[str]:
    """Join what was measured to the rows; return a note for each bench that gave nothing."""
    from stagjax.evaluation.latencies import join, without_latencies

    for row, filled in zip(rows, results["rows"], strict=True):
        filled["latency"] = join(row.subject.model, row.settings.decoding, [one for one in benches.values() if one])
    return without_latencies(benches, [filled["latency"] for filled in results["rows"]])


def _report(results: dict[str, Any], output: pathlib.Path) -> None:
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.evaluation_report import write_reports
    from stagjax.reporting.evaluation_tables import footnotes, paper_grids
    from stagjax.reporting.grid import terminal_table

    write_reports(results, output)
    console = report_console(highlight=False)
    for grid in paper_grids(results, console.width):
        console.print(terminal_table(grid, console.width), "")
    for line in footnotes(results):
        console.print(plain(line), soft_wrap=True)
    console.print(plain(f"written to {output}; open {output / 'report.html'}"), soft_wrap=True)
