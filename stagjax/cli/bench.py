"""`stagjax bench`: how long a decode step, a prefill and a training step take on the devices that are here, and why."""

import argparse

from stagjax import local_processes
from stagjax.cli import bench_decode, bench_train
from stagjax.cli.hosts import launch, launches

EPILOG = """\
examples:
  stagjax bench decode --config=experiments/stdlib.py:medium_separate_2x6 --local-processes=2 --output=runs/latency
  stagjax bench train --config=experiments/stdlib.py --variants=baseline_6,separate_2x3,shared_2x3

`stagjax bench COMMAND --help` explains a command's arguments. Everything is measured here and now, with random
parameters; what a machine would do that is not here is estimated by `stagjax plan`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `stagjax bench`."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="bench_command", metavar="COMMAND", required=True)
    bench_decode.add_command(commands)
    bench_train.add_command(commands)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write; with --local-processes let others do it."""
    if launches(args):
        local_processes.check(args.local_processes)
        return launch(args)
    return args.measure(args)
