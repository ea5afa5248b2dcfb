"""`stagjax info`: what an experiment costs, from its shape alone."""

import argparse
import pathlib
from typing import Any

from stagjax.cli import add_config_argument, count

EPILOG = """\
examples:
  stagjax info --config=experiments/pile.py:separate_2x18
  stagjax info --config=experiments/stdlib.py:shared_2x3 --context=1024 --batch=8 --json=info.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add_config_argument(parser)
    parser.add_argument("--context", type=count, metavar="T", help="slots of the caches, default: data.row_length")
    parser.add_argument(
        "--batch", type=count, default=1, metavar="B", help="rows decoded at once, default: %(default)s"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the same figures to FILE")


def run(args: argparse.Namespace) -> None:
    """Print the costs as a table, and write them where asked."""
    from stagjax.errors import UserError
    from stagjax.experiment import load_config

    config = load_config(args.config, args.overrides)
    context = args.context or config.data.row_length
    if context > config.model.max_length:
        raise UserError(f"--context={context} is over model.max_length={config.model.max_length}; use that or less")

    from stagjax.distributed import start_up
    from stagjax.files import write_json
    from stagjax.reporting.console import report_console
    from stagjax.reporting.tables import costs_table

    start_up()
    figures = costs(config, context, args.batch)
    report_console().print(costs_table(args.config, figures))
    if args.json:
        write_json(args.json, figures)


def costs(config: Any, context: int, batch: int) -> dict[str, Any]:
    """Return every figure of the table: counts, FLOPs per token, bytes."""
    from stagjax.decoding.placement import can_recur
    from stagjax.model import accounting

    model = config.model
    figures = {
        "context": context,
        "batch": batch,
        "parameters": accounting.count_parameters(model)._asdict(),
        "flops_per_token": {
            "training": accounting.training_flops(model, config.data.row_length),
            "decoding": accounting.decode_flops(model, context),
        },
        "cache_bytes": {name: batch * size for name, size in accounting.cache_bytes(model, context).items()},
        "training_bytes_estimate": accounting.training_memory(config),
    }
    if can_recur(model):
        figures["flops_per_token"]["recurrent_decoding"] = accounting.decode_flops(model, context, recurrent=True)
        recurrent = accounting.cache_bytes(model, context, recurrent=True)
        figures["recurrent_cache_bytes"] = {name: batch * size for name, size in recurrent.items()}
    for name in ("cache_bytes", "recurrent_cache_bytes", "training_bytes_estimate"):
        if name in figures:
            figures[name]["total"] = sum(figures[name].values())
    return figures
