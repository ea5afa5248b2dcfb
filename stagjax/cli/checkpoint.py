"""`stagjax checkpoint`: look into checkpoints, hand them on, and turn them into models of another shape."""

import argparse
import ast
import contextlib
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

from stagjax.cli import add_subcommand, count
from stagjax.files import directory
from stagjax.printable import one_line

EPILOG = """\
examples:
  stagjax checkpoint inspect runs/separate
  stagjax checkpoint export runs/separate --output=goods/separate
  stagjax checkpoint import goods/separate --workdir=runs/copy
  stagjax checkpoint convert runs/baseline --to=shared --output=runs/stacks

`stagjax checkpoint COMMAND --help` explains a command's arguments.
"""

INSPECT_EPILOG = """\
examples:
  stagjax checkpoint inspect runs/separate
  stagjax checkpoint inspect runs/separate --checkpoint=200 --verify
  stagjax checkpoint inspect goods/separate --json=separate.json

Only metadata are read, so this works for any model on any machine. --verify reads the arrays, a part at a time.
"""

EXPORT_EPILOG = """\
examples:
  stagjax checkpoint export runs/separate --output=goods/separate
  stagjax checkpoint export runs/separate --output=goods/small --checkpoint=latest --dtype=bfloat16
  stagjax checkpoint export runs/separate --output=goods/all --state

Writes model.safetensors (several files and an index above 5 GB), config.json, manifest.json, vocabulary.json and the
hashes in export.json; docs/checkpoints.md lists the tensors. In float32 every bit is kept. Without --state the
optimizer state stays behind.
"""

IMPORT_EPILOG = """\
examples:
  stagjax checkpoint import goods/separate --workdir=runs/copy
  stagjax generate --workdir=runs/copy --prompt='def '

The new workdir is one like any other: to decode from, to go on with, or to name in --init-from. Without an exported
state it holds the parameters at step 0, with a new optimizer.
"""

CONVERT_EPILOG = """\
examples:
  stagjax checkpoint convert runs/baseline_6 --to=separate --output=runs/stacks
      2 stacks of 3 of its layers
  stagjax checkpoint convert runs/baseline_3 --to=shared --output=runs/passes --config.model.cross_window=64
      its 3 layers run as 2 passes; the logits are the baseline's until cross-attention has learned something
  stagjax checkpoint convert runs/baseline_6 --output=runs/longer --config.model.max_length=2048
      more positions, the same model

then, to train what is new:
  stagjax train --config=experiments/stdlib.py:separate_2x3 --workdir=runs/tuned --init-from=runs/stacks

Cross-attention starts with a zero output projection. The loss before and after is measured on the validation rows.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `stagjax checkpoint`."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="checkpoint_command", metavar="COMMAND", required=True)

    inspect = add_subcommand(commands, "inspect", "list parameters, shapes, step and config", INSPECT_EPILOG)
    inspect.add_argument("path", type=directory, metavar="DIR", help="a workdir, WORKDIR/checkpoints/STEP, an export")
    _add_checkpoint(inspect)
    inspect.add_argument("--verify", action="store_true", help="read all arrays and compare their checksums")
    inspect.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything to FILE as JSON")

    export = add_subcommand(commands, "export", "write a model as safetensors and JSON", EXPORT_EPILOG)
    export.add_argument("path", type=directory, metavar="WORKDIR", help="of a stagjax train run")
    export.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="must not exist")
    _add_checkpoint(export)
    export.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16, which rounds")
    export.add_argument("--state", action="store_true", help="the optimizer state too, to go on training elsewhere")

    imported = add_subcommand(commands, "import", "make a workdir of an export", IMPORT_EPILOG)
    imported.add_argument("path", type=pathlib.Path, metavar="DIR", help="what export wrote")
    imported.add_argument("--workdir", required=True, type=pathlib.Path, metavar="NEW", help="must not exist")

    convert = add_subcommand(
        commands, "convert", "make a model of another shape, e.g. stacks of a baseline", CONVERT_EPILOG
    )
    convert.add_argument("path", type=directory, metavar="DIR", help="a workdir or an export")
    convert.add_argument("--output", required=True, type=pathlib.Path, metavar="WORKDIR", help="must not exist")
    _add_checkpoint(convert)
    convert.add_argument("--to", metavar="separate|shared", help="weights of the stacks; left out: the stacks stay")
    convert.add_argument("--stacks", type=count, default=2, metavar="P", help="default: %(default)s")
    convert.add_argument(
        "--layers",
        metavar="NAME",
        help="which layers a separate stack gets: contiguous or interleaved ones, or either _reversed, where the last "
        "stack gets the first layer; default: interleaved_reversed",
    )


def run(args: argparse.Namespace) -> None:
    """Run one of the subcommands."""
    from stagjax.cli import refuse_overrides
    from stagjax.distributed import start_up

    if args.checkpoint_command != "convert":
        refuse_overrides(args)
    start_up()
    {"inspect": _inspect, "export": _export, "import": _import, "convert": _convert}[args.checkpoint_command](args)


def _inspect(args: argparse.Namespace) -> None:
    from stagjax.checkpoints.inspection import VERIFIED, WHOLE, inspect
    from stagjax.cli import checkpoint_step
    from stagjax.errors import RunFailed
    from stagjax.files import write_json
    from stagjax.reporting.checkpoint_tables import checkpoint_tables
    from stagjax.reporting.console import report_console

    facts = inspect(args.path, checkpoint_step(args.checkpoint), args.verify)
    console = report_console()
    for table in checkpoint_tables(facts):
        console.print(table)
    if args.json:
        write_json(args.json, facts)
    if facts["validity"] not in (WHOLE, VERIFIED):
        raise RunFailed(f"step {facts['step']} of {args.path} is {facts['validity']}; choose another, or copy it again")


def _export(args: argparse.Namespace) -> None:
    from stagjax.cli import checkpoint_step
    from stagjax.exporting import export_model

    with _written() as on_tensor:
        step = checkpoint_step(args.checkpoint)
        metadata = export_model(args.path, args.output, step, args.dtype, args.state, on_tensor=on_tensor)
    what = "parameters, optimizer state and step" if args.state else "parameters, without optimizer state,"
    print(f"{what} of step {metadata['step']} in {args.dtype} are in {one_line(args.output)}")
    print(f"try it: stagjax generate --workdir={one_line(shlex.quote(str(args.output)))} --prompt='def '")


def _verifying(name: str) -> None:
    print(f"verifying {one_line(name)}", file=sys.stderr)


def _import(args: argparse.Namespace) -> None:
    from stagjax.exporting import import_model

    metadata = import_model(args.path, args.workdir, _verifying)
    where = one_line(args.workdir)
    if metadata["step"]:
        print(f"parameters and optimizer state of step {metadata['step']} are in {where}; training goes on there")
    else:
        print(f"the parameters are in {where} as step 0: the optimizer, the schedule and the data begin anew")


def _convert(args: argparse.Namespace) -> None:
    from stagjax.cli import checkpoint_step
    from stagjax.exporting import convert_model
    from stagjax.model.conversion import DEFAULT_LAYERS

    done = convert_model(
        args.path,
        args.output,
        checkpoint_step(args.checkpoint),
        args.to,
        args.stacks,
        args.layers or DEFAULT_LAYERS,
        _changes(args.overrides),
    )
    if done.before is None:
        print(f"not validated: {one_line(done.not_validated)}")
    else:
        for name, result in (("before", done.before), ("after", done.after)):
            print(f"validation loss {name}: {result['loss']:.4f}, {result['bits_per_byte']:.4f} bits per byte")
    print(f"the new model is in {one_line(args.output)}, at step 0")


def _changes(overrides: list[str]) -> dict[str, Any]:
    """Return {"cross_window": 64} from ["model.cross_window=64"]."""
    from stagjax.errors import UserError

    changes = {}
    for assignment in overrides:
        key, _, text = assignment.partition("=")
        section, _, field = key.partition(".")
        if section != "model":
            raise UserError(f"--config.{key} has no meaning here: a conversion changes the model, not its training")
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(text)
        changes[field] = None if text == "none" else text
    return changes


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="best|latest|STEP", help="default: best, or latest if none was validated"
    )


@contextlib.contextmanager
def _written() -> Iterator[Callable[[int], None]]:
    """Show how much is written, in bytes."""
    import rich.console
    import rich.progress

    columns = (rich.progress.TextColumn("written"), rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("written", total=None)
        yield lambda size: bar.advance(task, size)
