"""`stagjax evaluate`: one model on the paper's benchmarks; what of them is on this machine."""

import argparse
import pathlib
import shutil
import tempfile
from typing import Any

from stagjax.cli import count, count_or_none, number
from stagjax.cli.evaluation_run import Run, add_data_argument, add_run_arguments, status_of
from stagjax.cli.hosts import launch, launches
from stagjax.errors import UserError
from stagjax.rules import SEED, TEMPERATURE

EPILOG = """\
examples:
  stagjax evaluate --list
  stagjax evaluate --list superglue lambada_openai --data-dir=/data/benchmarks --json=list.json
  stagjax evaluate --workdir=runs/shared --tasks=hellaswag,lambada_openai --data-dir=/data/benchmarks --limit=200
  stagjax evaluate --workdir=runs/shared --tasks=paper --shots=5 --decoding=recurrent --output=runs/shared_5_shot
  stagjax evaluate --workdir=runs/shared --tasks=mbpp@3 --allow-code-execution --samples=10 --temperature=0.8

A data directory has the official files in a folder for each benchmark, under their official names:
  hellaswag/hellaswag_val.jsonl, arc_easy/ARC-Easy-Test.jsonl, winogrande/dev.jsonl, superglue/BoolQ/val.jsonl,
  lambada/lambada_test.jsonl, squadv2/dev-v2.0.json, mbpp/mbpp.jsonl, pile/val.jsonl.zst
and beside them the files that few-shot examples are drawn from. What is missing is named, with where to get it.

--output=DIR gets results.json, samples/TASK.jsonl (a line a document: answers and scores) and cells, from which the
same command goes on after Ctrl-C, SIGTERM or SIGKILL. A task whose data is missing or malformed is one line, and the
others go on; the exit status is 2 in the end. A task that fails otherwise makes it 3.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("names", nargs="*", metavar="TASK", help="the same as --tasks")
    add("--tasks", default="", metavar="A,B,...", help="benchmarks, superglue, paper or all (the default); NAME@SHOTS")
    add("--list", action="store_true", help="show splits, shots, metrics, and the files that are here")
    add_data_argument(parser)
    add("--json", type=pathlib.Path, metavar="FILE", help="write the list, or the results, to FILE")
    add("--workdir", metavar="DIR", help="of a stagjax train run, or an export")
    add("--checkpoint", metavar="best|latest|STEP", help="default: best, or latest if none was validated")
    add("--decoding", default="parallel", metavar="MODE", help="parallel (the default), or recurrent (shared weights)")
    add(
        "--shots",
        type=count_or_none,
        metavar="N",
        help="examples in a prompt; default: each benchmark's, most have none",
    )
    add("--limit", type=count, metavar="N", help="the first N documents of each task")
    add("--samples", type=count, default=1, metavar="N", help="answers to each generation request (default: 1)")
    add("--temperature", type=number(TEMPERATURE), default=0.0, help="of generation; 0, greedy, is the default")
    add("--seed", type=number(SEED), default=0, help="of sampled answers (default: 0)")
    add("--documents", default="disjoint", metavar="RULE", help="how long documents are cut: disjoint, overlap")
    add("--stop", default="anywhere", metavar="RULE", help="where stop strings count: anywhere, after_text")
    add("--output", type=pathlib.Path, metavar="DIR", help="results.json, samples, and cells to go on from")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """List, or evaluate.

    Raises:
      UserError: an unknown task, no model, or options that do not fit it.
    """
    from stagjax.cli import refuse_overrides
    from stagjax.tasks.benchmark import data_directory

    refuse_overrides(args)
    args.data_dir = data_directory(args.data_dir)
    names = [*args.names, *filter(None, args.tasks.split(","))] or ["all"]
    if args.list:
        _list(args, names)
        return 0
    if not args.workdir:
        raise UserError("--workdir is missing: name the run whose model is evaluated, or use --list")
    if launches(args):
        return launch(args, grace=None)  # what is under way ends its batch, and is kept
    return _evaluate(args, names)


def _list(args: argparse.Namespace, names: list[str]) -> None:
    from stagjax.files import write_json
    from stagjax.reporting.benchmark_tables import inventory_table, problem_lines
    from stagjax.reporting.console import plain, report_console
    from stagjax.tasks import catalog
    from stagjax.tasks.inventory import inventory

    benchmarks = catalog.select(names)
    console = report_console(highlight=False)
    with console.status(plain(f"reading {len(benchmarks)} benchmarks in {args.data_dir}")):
        rows = inventory(benchmarks, args.data_dir)
    console.print(inventory_table(rows, args.data_dir))
    for line in problem_lines(rows):
        console.print(plain(line), soft_wrap=True)
    if args.json:
        write_json(args.json, {"data_directory": args.data_dir, "tasks": rows})


def _evaluate(args: argparse.Namespace, names: list[str]) -> int:
    from stagjax.cli import checkpoint_step
    from stagjax.decoding.placement import check_mode
    from stagjax.evaluation.questions import parse_tasks
    from stagjax.evaluation.results import make_row
    from stagjax.evaluation.scoring import Settings
    from stagjax.evaluation.subjects import subjects_of

    asked = parse_tasks(names, args.shots)
    run = Run(args, args.data_dir)
    name = pathlib.Path(args.workdir).resolve().name
    (subject,) = subjects_of(name, args.workdir, [checkpoint_step(args.checkpoint)])
    settings = Settings(args.decoding, args.documents, args.stop, args.seed)
    settings.check()
    check_mode(subject.model, settings.decoding)
    options = {"limit": args.limit, "samples": args.samples, "temperature": args.temperature}
    row = make_row(subject, settings, args.shots, asked, **options)
    if args.output is None:
        with tempfile.TemporaryDirectory() as directory:
            again = "nothing was kept; with --output the same command would go on"
            results = run.results([row], pathlib.Path(directory), again)
    else:
        _refuse_other(args.output, subject, settings.decoding)
        cells = args.output / "cells"
        results = run.results([row], cells, f"what is finished is in {args.output}; the same command goes on")
        if run.first:
            _write(args.output, results, cells)
    if run.first:
        _show(results, args)
    return status_of(results)


def _refuse_other(output: pathlib.Path, subject: Any, decoding: str) -> None:
    """Raise `UserError` if there are results of another model, or of another decoding mode."""
    from stagjax.files import read_json

    models = lambda results: {(row["content"], row["decoding"]) for row in results["rows"]}
    try:
        found = read_json(output / "results.json", "choose another --output", models)
    except FileNotFoundError:
        return
    if found != {(subject.content, decoding)}:
        raise UserError(f"--output={output} holds the results of another model or mode; choose another directory")


def _write(output: pathlib.Path, results: dict[str, Any], cells: pathlib.Path) -> None:
    from stagjax.files import write_json, writing

    with writing(output):
        (output / "samples").mkdir(parents=True, exist_ok=True)
        for label, cell in results["rows"][0]["cells"].items():
            if cell["status"] == "done":
                partial = output / "samples" / f"{label}.jsonl.partial"
                shutil.copyfile(cells / f"{cell['key']}.jsonl", partial)
                partial.replace(output / "samples" / f"{label}.jsonl")
    write_json(output / "results.json", results)


def _show(results: dict[str, Any], args: argparse.Namespace) -> None:
    from stagjax.files import write_json
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.evaluation_tables import evaluation_grid, footnotes, subset_grids
    from stagjax.reporting.grid import terminal_table

    console = report_console(highlight=False)
    for grid in (evaluation_grid(results), *subset_grids(results)):
        console.print(terminal_table(grid, console.width), "")
    for line in footnotes(results):
        console.print(plain(line), soft_wrap=True)
    if args.json:
        write_json(args.json, results)
    if args.output:
        console.print(plain(f"written to {args.output}: results.json, samples"), soft_wrap=True)
