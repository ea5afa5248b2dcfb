"""`stagjax train`: train an experiment, or go on with one that was stopped."""

import argparse
import pathlib

from stagjax.cli import add_config_argument

EPILOG = """\
examples:
  stagjax train --config=experiments/stdlib.py:separate_2x3 --workdir=runs/separate
  stagjax train --config=experiments/stdlib.py:baseline_6,runlocal --workdir=runs/tiny
  stagjax train --config=experiments/stdlib.py:shared_2x3 --workdir=runs/low --config.training.learning_rate=3e-4

The same command goes on where a stopped run ended: checkpoints, config, metrics.jsonl and TensorBoard files
(tensorboard --logdir=runs) are in the workdir. SIGTERM and Ctrl-C save first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="the run's own directory")
    parser.add_argument(
        "--profile-steps",
        metavar="FIRST:LAST",
        help="write a profiler trace of these steps, both included, to WORKDIR/profile, e.g. 100:110",
    )


def run(args: argparse.Namespace) -> None:
    """Train, then say where the result is."""
    from stagjax.config import to_json
    from stagjax.experiment import load_config
    from stagjax.host_memory import keep_host_memory

    keep_host_memory()
    config = load_config(args.config, args.overrides)
    print(to_json(config), flush=True)

    from stagjax.distributed import start_up
    from stagjax.training.loop import train
    from stagjax.training.profiling import Window

    profile = Window.parse(args.profile_steps) if args.profile_steps else None
    start_up()
    summary = train(config, args.workdir, profile)
    figures = "".join(
        f", validation {name.replace('_', ' ')} {value:.4f}" for name, value in summary.validation.items()
    )
    print(f"step {summary.step}{figures}; the run is in {args.workdir}")
    print(f"try it: stagjax generate --workdir={args.workdir} --prompt='def '")
