"""The command line: one module a command, loaded when that command runs, so that `--help` answers at once."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from stagjax import __version__
from stagjax.errors import Preempted, RunFailed, UserError
from stagjax.printable import one_line
from stagjax.rules import COUNT, COUNT_OR_NONE, Number, is_whole
from stagjax.streams import checked, make_lasting

COMMANDS = {
    "info": "what an experiment costs: parameters, FLOPs, cache, memory",
    "train": "train an experiment, or go on with one that was stopped",
    "generate": "continue prompts with a trained model",
    "evaluate": "one model on the benchmarks of the paper; what of them is on this machine",
    "sweep": "many checkpoints on many tasks, in one table with their latencies",
    "data": "prepare data and vocabularies",
    "plan": "what a program costs on a TPU topology, compiled here, without a TPU",
    "bench": "how long decode and training steps take on the devices that are here, by part",
    "checkpoint": "look into checkpoints, hand them on, turn them into models of another shape",
    "demo": "train four small models and compare them in one table",
}

EPILOG = """\
a first run, on any machine:
  stagjax train --config=experiments/stdlib.py:separate_2x3,runlocal --workdir=runs/first
  stagjax generate --workdir=runs/first --prompt="def main("

exit status:
  0 done   2 bad input   3 the run failed, the last good checkpoint is named, or standard output could not be written
  75 preempted and saved, start it again   130 Ctrl-C, saved
"""


class Parser(argparse.ArgumentParser):
    """A parser, also of subcommands, that refuses a line in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`; what `number` refuses has its remedy already."""
        name, mark, broken = message.removeprefix("argument ").partition(f": {_BROKEN}")
        raise UserError(f"{name}={broken}" if mark else f"{name}; see {self.prog} --help")


_BROKEN = "broken: "


def number(rule: Number) -> Callable[[str], int | float]:
    """Return the `type` of an argument whose value is a number within a rule."""

    def parse(text: str) -> int | float:
        try:
            value = rule.parse(text)
        except ValueError:
            broken = f"is no {'number' if rule.kind is float else 'whole number'}; use {rule.range}"
        else:
            broken = rule.broken(value)
        if broken:
            raise argparse.ArgumentTypeError(f"{_BROKEN}{text[:40]} {broken}")
        return value

    return parse


def numbers(rule: Number) -> Callable[[str], list[int | float]]:
    """Return the `type` of an argument whose value is one number or several, A,B,..., each within a rule."""
    return lambda text: [number(rule)(part) for part in text.split(",")]


count, count_or_none, counts = number(COUNT), number(COUNT_OR_NONE), numbers(COUNT)


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only `command`'s module, if any, is imported for its arguments."""
    parser = Parser(
        prog="stagjax",
        description="Train, evaluate and benchmark StagFormer: a Transformer whose layer stacks decode in parallel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stagjax {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == command:
            module = importlib.import_module(f"stagjax.cli.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a line, with `argv` itself and `overrides` ("section.field=value").

    Raises:
      UserError: an argument that is none, or a value that it cannot have.
    """
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        args, rest = build_parser(command).parse_known_args(argv)
    except SystemExit as stop:
        sys.exit(checked(stop.code or 0, "stagjax"))
    args.argv, args.overrides = list(argv), _overrides(rest)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; every expected failure is one line on stderr."""
    make_lasting()
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        status = args.run(args) or 0
        _part()
        return checked(status, "stagjax")
    except UserError as error:
        return _fail(2, error)
    except RunFailed as error:
        return _fail(3, error)
    except Preempted as error:
        return _fail(75, error)
    except KeyboardInterrupt as error:
        return _fail(130, error if error.args else "interrupted")


def add_config_argument(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add `--config`; its fields are overridden by `--config.section.field=value` anywhere on the line."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE:VARIANT",
        help="experiment, e.g. experiments/stdlib.py:separate_2x3; add ',runlocal' for a tiny version; "
        "--config.section.field=VALUE changes a field, e.g. --config.training.learning_rate=3e-4",
    )


def add_subcommand(commands: Any, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    """Add a subcommand to `commands` (of `add_subparsers`) and return its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def refuse_overrides(args: argparse.Namespace) -> None:
    """Raise `UserError` if config fields were given to a command that reads no experiment."""
    if args.overrides:
        raise UserError(f"--config.{args.overrides[0]} has no meaning here: the workdir holds the config")


def checkpoint_step(text: str | None) -> str | int | None:
    """Read the value of `--checkpoint`: "best", "latest" or a step; None stays None."""
    if text in (None, "best", "latest"):
        return text
    if not is_whole(text):
        raise UserError(f"--checkpoint={text[:40]} is neither best, latest nor a step")
    return int(text)


def _overrides(rest: Sequence[str]) -> list[str]:
    overrides = []
    for word in rest:
        if not word.startswith("--config.") or "=" not in word:
            raise UserError(f"unknown argument {word!r}; fields are set by --config.section.field=value, see --help")
        overrides.append(word.removeprefix("--config."))
    return overrides


def _part() -> None:
    """Let go of the other processes of a run, where the command has joined any."""
    if "stagjax.distributed" in sys.modules:
        sys.modules["stagjax.distributed"].part()


def _fail(status: int, error: BaseException | str) -> int:
    say = lambda: print(f"stagjax: {one_line(error)}", file=sys.stderr)
    if "stagjax.distributed" in sys.modules:  # or this is a command that needs no JAX, and does not load it to fail
        sys.modules["stagjax.distributed"].leave(status, error, say)
    else:
        say()
    return status
