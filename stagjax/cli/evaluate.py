"""`stagjax evaluate`: the benchmarks of the paper; what of them is on this machine."""

import argparse
import os
import pathlib

from stagjax.errors import UserError

EPILOG = """\
examples:
  stagjax evaluate --list
  stagjax evaluate --list superglue lambada_openai --data-dir=/data/benchmarks --json=list.json

A data directory has the official files in a folder for each benchmark, under their official names:
  hellaswag/hellaswag_val.jsonl, arc_easy/ARC-Easy-Test.jsonl, winogrande/dev.jsonl, superglue/BoolQ/val.jsonl,
  lambada/lambada_test.jsonl, squadv2/dev-v2.0.json, mbpp/mbpp.jsonl, pile/val.jsonl.zst
and beside them the files that few-shot examples are drawn from. What is missing is named, with where to get it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help="benchmarks, or superglue, paper or all (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="show splits, shots, metrics, and the files that are here")
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("STAGJAX_DATA_DIR", "data"),
        metavar="DIR",
        help="directory of the official files (default: the environment's STAGJAX_DATA_DIR, or data)",
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the same to FILE")


def run(args: argparse.Namespace) -> None:
    """Print the list.

    Raises:
      UserError: an unknown task, or no --list.
    """
    from stagjax.cli import refuse_overrides

    refuse_overrides(args)
    if not args.list:
        raise UserError("nothing to do; use --list")

    import rich.console

    from stagjax.files import write_json
    from stagjax.reporting.benchmark_tables import inventory_table, problem_lines
    from stagjax.tasks import catalog
    from stagjax.tasks.inventory import inventory

    benchmarks = catalog.select(args.tasks or ["all"])
    console = rich.console.Console(highlight=False)
    with console.status(f"reading {len(benchmarks)} benchmarks in {args.data_dir}"):
        rows = inventory(benchmarks, args.data_dir)
    console.print(inventory_table(rows, args.data_dir))
    for line in problem_lines(rows):
        console.print(line, markup=False, soft_wrap=True)
    if args.json:
        write_json(args.json, {"data_directory": args.data_dir, "tasks": rows})
