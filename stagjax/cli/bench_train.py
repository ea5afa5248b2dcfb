"""`stagjax bench train`: what staggering costs in training: tokens per second, MFU, memory and FLOPs of variants."""

import argparse
import dataclasses
from typing import Any

from stagjax.cli import add_config_argument, add_subcommand, count
from stagjax.cli.bench_results import Report, add_output_arguments, check_output, platform_notes, progress
from stagjax.cli.hosts import start

EPILOG = """\
examples:
  stagjax bench train --config=experiments/stdlib.py --variants=baseline_3,baseline_6,separate_2x3,shared_2x3
      the price of staggering, beside the shallow and the deep baseline
  stagjax bench train --config=experiments/pile.py --variants=baseline_36,separate_2x18 --batch=64 \\
      --config.training.remat=layer --config.training.accumulation=4 --output=runs/training
      overrides hold for all variants
  stagjax bench train --config=experiments/stdlib.py --variants=separate_2x3 --pipelined --local-processes=2
      all stacks on each device, and beside it a device a stack (mesh.stack=2)

The program is the one that trains; its parameters and its rows are random. All variants are compiled first, then
measured one after the other, in --rounds: where the rounds differ, the machine has drifted. Models of one stack keep
mesh.stack=1 whatever --config.mesh.stack says. Add ',runlocal' to --variants for tiny versions. A program that was
compiled on this machine before is read from a cache, and its seconds are those of reading.
--output=DIR gets results.json, PNG pictures and report.html, which opens offline; what is there is never overwritten.
"""


def add_command(commands: Any) -> None:
    """Add `train` to the commands of `stagjax bench`."""
    summary = "measure training steps of variants: tokens per second, MFU, memory, FLOPs"
    parser = add_subcommand(commands, "train", summary, EPILOG)
    add_config_argument(parser)
    add = parser.add_argument
    add("--variants", metavar="A,B,...", help="of the file; ratios are to the first. Or one, as --config=FILE:VARIANT")
    add("--steps", type=count, default=5, metavar="N", help="timed steps of a variant in a round (default: 5)")
    add("--rounds", type=count, default=2, metavar="N", help="passes over all variants (default: 2)")
    add(
        "--batch",
        type=count,
        metavar="ROWS",
        help="rows of a step, all devices together: training.global_batch",
    )
    add("--pipelined", action="store_true", help="measure models of several stacks also with a slice a stack")
    add_output_arguments(parser)
    parser.set_defaults(measure=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    from stagjax.host_memory import keep_host_memory

    variants = _variants(args)
    keep_host_memory()  # as training does
    check_output(args.output)

    from stagjax.bench.machine import describe
    from stagjax.bench.training import Settings, TrainingBenchmark

    settings = Settings(args.steps, args.rounds)
    settings.check()
    start(args)
    head = {
        "benchmark": "train",
        "config": args.config,
        "machine": describe(),
        "settings": dataclasses.asdict(settings),
        "notes": platform_notes(),
    }
    report = Report(args.output, head)
    with progress(report.first) as on_step:
        benchmark = TrainingBenchmark(variants, settings, on_step)
        for _ in range(settings.rounds):
            benchmark.measure_round()
            report.keep(benchmark.result)
    report.finish(benchmark.result)
    return 0


def _variants(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """Return the names and configs that the command line asks for, checked."""
    from stagjax.errors import UserError, unknown
    from stagjax.experiment import variant_names

    path, _, arg = args.config.partition(":")
    options = ""
    if arg and args.variants:
        raise UserError(f"--config={args.config} names a variant, and so does --variants; use --config={path}")
    if arg:
        names = [arg]
    else:
        known = variant_names(path)
        names = args.variants.split(",") if args.variants else []
        if "runlocal" in names:
            options = ",runlocal"
            names = [name for name in names if name != "runlocal"]
        if not names:
            raise UserError(f"--variants says what is measured, e.g. --variants={known[0]}; known: {', '.join(known)}")
        for name in names:
            if name not in known:
                raise unknown("variant in --variants", name, known)
    overrides = list(args.overrides)
    if args.batch is not None:
        overrides.append(f"training.global_batch={args.batch}")
    variants = []
    for name in names:
        variants += _placed(name.partition(",")[0], f"{path}:{name}{options}", overrides, args.pipelined)
    return variants


def _placed(name: str, spec: str, overrides: list[str], pipelined: bool) -> list[tuple[str, Any]]:
    """Return a variant as it is asked for, and with --pipelined also with a slice for each stack."""
    from stagjax.errors import UserError
    from stagjax.experiment import load_config

    elsewhere = [text for text in overrides if not text.startswith("mesh.stack=")]
    try:
        config = load_config(spec, elsewhere)
        if config.model.num_stacks > 1 and overrides != elsewhere:
            config = load_config(spec, overrides)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if not pipelined or config.model.num_stacks == 1 or config.mesh.stack > 1:
        return [(name, config)]
    mesh = dataclasses.replace(config.mesh, stack=config.model.num_stacks)
    return [(name, config), (f"{name}, pipelined", dataclasses.replace(config, mesh=mesh))]
