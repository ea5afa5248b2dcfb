"""Check a line that other machines will run, as far as it can be checked without them: flags, config, mesh.

`python -m stagjax.cli.elsewhere DEVICES SLICES train --config=...` ends with 0, or with 2 and the line that they would
print. It loads no JAX.
"""

import argparse
import sys
from collections.abc import Sequence

from stagjax.cli import parse, refuse_overrides
from stagjax.division import check_pod
from stagjax.errors import UserError
from stagjax.experiment import load_config, variant_names


def check(line: Sequence[str], devices: int, slices: int) -> None:
    """Raise `UserError` where a command would refuse its line on so many devices.

    Args:
      line: of the command, without `stagjax`.
      devices: of all hosts.
      slices: of TPUs, among which they are divided.
    """
    args = parse(line)
    if args.command == "train":
        config = load_config(args.config, args.overrides)
        if args.profile_steps:
            from stagjax.training.profiling import Window

            Window.parse(args.profile_steps).check(config.training.steps)
        check_pod(config, devices, slices)
    elif getattr(args, "config", None):
        _check_experiment(args)
    else:
        refuse_overrides(args)


def main(argv: Sequence[str]) -> int:
    """Check one line and return the exit status."""
    devices, slices, *line = argv
    try:
        check(line, int(devices), int(slices))
    except UserError as error:
        print(f"stagjax: {error}", file=sys.stderr)
        return 2
    return 0


def _check_experiment(args: argparse.Namespace) -> None:
    file, colon, _ = args.config.partition(":")
    if colon:
        load_config(args.config, args.overrides)
    elif variants := getattr(args, "variants", None):
        for variant in variants.split(","):
            load_config(f"{file}:{variant}", args.overrides)
    else:
        variant_names(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
