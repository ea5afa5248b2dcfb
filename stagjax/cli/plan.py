"""`stagjax plan`: what a program costs on a TPU topology, compiled ahead of time on any machine."""

import argparse
import pathlib
from typing import Any

from stagjax.cli import add_config_argument, count, counts
from stagjax.rules import Number

EPILOG = """\
examples:
  stagjax plan --config=experiments/pile.py:separate_2x18 --topology=v5e:4x4 --batch=8
  stagjax plan --config=experiments/pile.py:separate_2x18_window_1 --topology=v5e:4x4 --timeline=step.png
  stagjax plan --config=experiments/pile.py:separate_2x18 --topology=v5e:8x16 --program=train
  stagjax plan --config=experiments/pile.py --compare --topology=v5e:4x4 --batch=1,8 --output=plans
  stagjax plan --config=experiments/pile.py --compare --topology=v5e:16x16 --program=train --output=plans

Nothing is measured: the compiler tells memory, FLOPs, cycles and collectives; a ledger adds what the collectives take,
by named constants (--calibration changes them: --calibration=hops:hop_us=0.7,small_us=1). --compare plans every variant
of a file, or those of --variants, against a plain decoder of as many layers on equal chips and on one slice's chips; of
training it tells memory, step, days and chip-hours. A training step of the paper's models takes 2 to 3 minutes of a
core to compile, and 5 GB of memory.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    add_config_argument(parser)
    add = parser.add_argument
    add("--topology", required=True, metavar="NAME", help="e.g. v5e:4x4, v5e:16x16, v5p:2x2x4, v6e:4x4, tpu7x:2x2x4")
    add("--program", default="decode", metavar="NAME", help="decode (a step; the default), prefill, or train")
    add(
        "--batch",
        type=counts,
        default="1",
        metavar="B[,B...]",
        help="rows decoded at once; several with --compare; default: 1",
    )
    add(
        "--context",
        type=count,
        metavar="T",
        help="slots of the caches, or prompt length; default: data.row_length",
    )
    add("--mesh", default="", metavar="stack=P,tensor=N", help="default: a slice a stack, on all chips")
    add("--decoding", default="parallel", metavar="MODE", help="parallel (the default) or recurrent")
    add(
        "--heads",
        default="padded",
        metavar="HOW",
        help="heads that chips do not divide: padded (the default), repeated",
    )
    add(
        "--rows",
        type=count,
        metavar="N",
        help="pad rows of products to a multiple; default: 8, which a TPU takes",
    )
    add(
        "--calibration",
        action="append",
        default=[],
        metavar="NAME:FIELD=X[,...]",
        help="change constants of the calibration 'hops' or 'published', or name a new one; may be repeated",
    )
    add("--json", type=pathlib.Path, metavar="FILE", help="write all figures to FILE")
    add("--timeline", type=pathlib.Path, metavar="FILE.png", help="draw the decode step, a lane a slice")
    add("--compare", action="store_true", help="plan all variants of the file, side by side")
    add("--variants", metavar="A,B,...", help="which, with --compare; default: all")
    add(
        "--output",
        type=pathlib.Path,
        metavar="DIR",
        help="of --compare: plans.json, timeline_batch_B.png; of training: training.json, to go on from if interrupted",
    )


def run(args: argparse.Namespace) -> None:
    """Compile, then print, write and draw."""
    from stagjax.errors import UserError

    batches = args.batch
    if args.compare:
        if args.json or args.timeline or args.program == "prefill":
            raise UserError(
                "--compare plans decode steps or, with --program=train, training, and writes to --output=DIR; "
                "leave out --json, --timeline, --program=prefill"
            )
    elif len(batches) > 1 or args.output or args.variants:
        raise UserError("several batches, --variants and --output go with --compare; add it, or give one --batch")
    calibrations = _calibrations(args.calibration)
    if args.timeline or args.output:
        from stagjax.reporting.plots import require_matplotlib

        require_matplotlib()

    from stagjax.distributed import start_up

    start_up()
    if args.compare and args.program == "train":
        _compare_training(args, calibrations)
    else:
        (_compare if args.compare else _one)(args, batches, calibrations)


def _one(args: argparse.Namespace, batches: list[int], calibrations: list[Any]) -> None:
    from stagjax.bench.plan import plan
    from stagjax.bench.topology import topology_devices
    from stagjax.errors import UserError
    from stagjax.files import write_json
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.plots import plot_timelines
    from stagjax.reporting.tables import plan_tables

    request = _request(args, args.config, batches[0])
    request.check()
    console = report_console()
    devices = topology_devices(args.topology)
    with console.status(plain(f"compiling {request.program} of {request.name} for {args.topology}")):
        result = plan(request, args.topology, devices, calibrations)
    figures = result.to_dict()
    for table in plan_tables(figures):
        console.print(table)
    if args.json:
        write_json(args.json, figures)
    if args.timeline:
        if not figures["timeline"]:
            raise UserError("--timeline draws a decode step that fits; use --program=decode")
        plot_timelines([figures], args.timeline)


def _compare(args: argparse.Namespace, batches: list[int], calibrations: list[Any]) -> None:
    from stagjax.bench.compare import Comparison
    from stagjax.bench.topology import topology_devices
    from stagjax.files import write_json
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.plots import plot_timelines
    from stagjax.reporting.tables import choices_table, comparison_table

    console = report_console()
    requests = list(_requests(args, batches))
    devices = topology_devices(args.topology)
    with console.status("compiling") as status:
        on_plan = lambda text: status.update(plain(f"compiling {text} for {args.topology}"))
        comparison = Comparison(args.topology, devices, calibrations, on_plan)
        rows = [comparison.row(request) for request in requests]
        separate = [r for r in requests if r.config.model.num_stacks > 1 and not r.config.model.shared_weights]
        choices = []
        for batch in batches if separate else ():
            first = next(request for request in separate if request.batch == batch)
            choices += [(text, row.to_dict()) for text, row in comparison.choices(first)]
    figures = [row.to_dict() for row in rows]
    for batch in batches:
        console.print(comparison_table([row for row in figures if row["batch"] == batch], args.topology))
    for batch in batches if choices else ():
        console.print(choices_table([(text, row) for text, row in choices if row["batch"] == batch], args.topology))
    if args.output:
        named = [{"choice": text} | row for text, row in choices]
        write_json(args.output / "plans.json", {"topology": args.topology, "variants": figures, "choices": named})
        for batch in batches:
            shown = _shown([row for row in rows if row.plan.request.batch == batch])
            if shown:
                plot_timelines([plan.to_dict() for plan in shown], args.output / f"timeline_batch_{batch}.png")
        console.print(plain(f"written to {args.output}"))


def _compare_training(args: argparse.Namespace, calibrations: list[Any]) -> None:
    """Plan the training of each variant; what an earlier, interrupted comparison has planned is not compiled again."""
    from stagjax.bench.plan import plan
    from stagjax.bench.topology import topology_devices
    from stagjax.files import write_json
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.tables import training_plans_table

    console = report_console()
    path, devices = args.config.partition(":")[0], topology_devices(args.topology)
    file = args.output and args.output / "training.json"
    figures = _planned(file)
    names = _variants(args)
    for number, name in enumerate(names, 1):
        request = _request(args, f"{path}:{name}", 1)
        key = [args.topology, repr(request), repr(calibrations)]
        if figures.get(name, {}).get("key") == key:
            continue
        with console.status(plain(f"compiling {name} for {args.topology}, {number} of {len(names)}")):
            figures[name] = plan(request, args.topology, devices, calibrations).to_dict() | {"key": key}
        if file:
            write_json(file, figures)
    console.print(training_plans_table([figures[name] for name in names], args.topology))
    if file:
        console.print(plain(f"written to {file}"))


def _planned(file: pathlib.Path | None) -> dict[str, Any]:
    """Return what an earlier comparison has written, by variant."""
    from stagjax.files import read_json

    if file is None or not file.exists():
        return {}
    # Of variants that are objects, as `--compare` writes them: others would have no key to be compared by.
    return read_json(file, "remove it, or choose another --output", lambda found: {n: {**p} for n, p in found.items()})


def _shown(rows: list[Any]) -> list[Any]:
    """Return the plans of a picture: of each number of slices the fastest, below the baselines of the first."""
    fastest: dict[int, Any] = {}
    for row in sorted(rows, key=lambda row: row.plan.timeline[-1].end if row.plan.timeline else float("inf")):
        if row.plan.mesh["stack"] > 1 and row.plan.timeline:
            fastest.setdefault(row.plan.mesh["stack"], row)
    ordered = [fastest[stack] for stack in sorted(fastest)]
    return [ordered[0].slice, ordered[0].equal, *(row.plan for row in ordered)] if ordered else []


def _request(args: argparse.Namespace, spec: str, batch: int, mode: str | None = None) -> Any:
    from stagjax.bench.plan import Request
    from stagjax.errors import unknown
    from stagjax.experiment import load_config
    from stagjax.mesh import DecodeMesh

    if args.heads not in ("padded", "repeated"):
        raise unknown("--heads", args.heads, ("padded", "repeated"))
    if (mode or args.decoding) not in ("parallel", "recurrent"):
        raise unknown("--decoding", args.decoding, ("parallel", "recurrent"))
    config = load_config(spec, args.overrides)
    return Request(
        name=spec.partition(":")[2] + (", recurrent" if mode == "recurrent" else ""),
        config=config,
        program=args.program,
        batch=batch,
        context=args.context or config.data.row_length,
        mesh=DecodeMesh.parse(args.mesh) if args.mesh else None,
        mode=mode or args.decoding,
        heads=args.heads,
        rows=args.rows,
    )


def _requests(args: argparse.Namespace, batches: list[int]) -> Any:
    """Yield a request a variant and batch, and one for recurrent decoding where that means something."""
    from stagjax.decoding.placement import can_recur

    path = args.config.partition(":")[0]
    for batch in batches:
        for name in _variants(args):
            request = _request(args, f"{path}:{name}", batch, "parallel")
            request.check()
            yield request
            if can_recur(request.config.model):
                yield _request(args, f"{path}:{name}", batch, "recurrent")


def _variants(args: argparse.Namespace) -> list[str]:
    from stagjax.experiment import variant_names

    return args.variants.split(",") if args.variants else variant_names(args.config.partition(":")[0])


def _calibrations(texts: list[str]) -> list[Any]:
    """Return the two calibrations with the constants that the command line changes."""
    import dataclasses

    from stagjax.bench.ledger import HOPS, PUBLISHED, Calibration
    from stagjax.errors import UserError, unknown

    known = {HOPS.name: HOPS, PUBLISHED.name: PUBLISHED}
    fields = [field.name for field in dataclasses.fields(Calibration) if field.name not in ("name", "kinds")]
    constant = Number(float, 0, any_size=True)
    for text in texts:
        name, _, assignments = text.partition(":")
        changes = {}
        for assignment in filter(None, assignments.split(",")):
            field, _, value = assignment.partition("=")
            if field not in fields:
                raise unknown("constant of --calibration", field, fields)
            try:
                changes[field] = float(value)
            except ValueError:
                raise UserError(f"--calibration={text}: {field}={value!r} is no number") from None
            constant.check(f"--calibration={text}: {field}", changes[field])
        if not name or not changes:
            raise UserError(f"--calibration={text} changes nothing; use e.g. hops:hop_us=0.7")
        # Whoever names constants says that they hold for the chips at hand.
        known[name] = dataclasses.replace(known.get(name, Calibration(name)), **changes, kinds=None)
    return list(known.values())
