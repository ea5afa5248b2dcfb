"""`stagjax train`: train an experiment, or go on with one that was stopped."""

import argparse
import shlex

from stagjax.cli import add_config_argument
from stagjax.cli.hosts import add_host_arguments, launch, launches, start
from stagjax.files import check_place, directory
from stagjax.printable import one_line

EPILOG = """\
examples:
  stagjax train --config=experiments/stdlib.py:separate_2x3 --workdir=runs/separate
  stagjax train --config=experiments/stdlib.py:baseline_6,runlocal --workdir=runs/tiny
  stagjax train --config=experiments/stdlib.py:shared_2x3 --workdir=runs/low --config.training.learning_rate=3e-4
  stagjax train --config=experiments/stdlib.py:separate_2x3 --workdir=runs/longer --init-from=runs/separate:latest
  stagjax train --config=experiments/stdlib.py:separate_2x3,runlocal --workdir=runs/two --local-processes=2
      two processes of this machine, as the hosts of a pod; on a pod the same line, without it, starts on every host

The same command goes on where a stopped run ended: checkpoints, config, metrics.jsonl and TensorBoard files
(tensorboard --logdir=runs) are in the workdir. SIGTERM and Ctrl-C save first. What --init-from
names is needed until step 0 is saved, and never again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add_config_argument(parser)
    parser.add_argument(
        "--init-from",
        metavar="DIR[:best|:latest|:STEP]",
        help="start a new run from the parameters of another one's --workdir (default: its best checkpoint) or of an "
        "export; schedule, optimizer and data position begin anew",
    )
    parser.add_argument(
        "--workdir", required=True, type=directory, metavar="DIR", help="the run's own directory, also gs://"
    )
    parser.add_argument(
        "--profile-steps",
        metavar="FIRST:LAST",
        help="write a profiler trace of these steps, both included, to WORKDIR/profile, e.g. 100:110",
    )
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, then say where the result is; with --local-processes let others do it."""
    from stagjax.config import to_json
    from stagjax.experiment import load_config
    from stagjax.host_memory import keep_host_memory
    from stagjax.hosts.facts import flat
    from stagjax.training.profiling import Window

    check_place(args.workdir, "--workdir")
    config = load_config(args.config, args.overrides)
    profile = Window.parse(args.profile_steps) if args.profile_steps else None
    if launches(args):
        return launch(args, own_cores=False, grace=None)  # saving takes the time that it takes
    keep_host_memory()
    print(to_json(config), flush=True)

    from stagjax.training.loop import train

    start(args, flat(config.to_dict()))
    summary = train(config, args.workdir, args.init_from, profile)
    figures = "".join(
        f", validation {name.replace('_', ' ')} {value:.4f}" for name, value in summary.validation.items()
    )
    print(f"step {summary.step}{figures}; the run is in {one_line(args.workdir)}")
    print(f"try it: stagjax generate --workdir={one_line(shlex.quote(str(args.workdir)))} --prompt='def '")
    return 0
