"""`stagjax bench decode`: decode steps and prefills, by part, beside what one could run instead."""

import argparse
from typing import Any

from stagjax.bench.comparators import COMPARATORS
from stagjax.cli import add_config_argument, add_subcommand, count, count_or_none, counts, number
from stagjax.cli.bench_results import Report, add_output_arguments, check_output, platform_notes, progress
from stagjax.cli.hosts import start
from stagjax.rules import Number

EPILOG = """\
examples:
  stagjax bench decode --config=experiments/stdlib.py:medium_separate_2x6 --local-processes=2 --output=runs/latency
      two slices that are real on a CPU: a process each, a core each
  stagjax bench decode --config=experiments/pile.py:shared_2x18 --batch=1,8 --context=1280,5120 --output=runs/gpu
      on one accelerator: more rows, and caches beyond the length of training
  stagjax bench decode --config=experiments/pile.py:separate_2x18 --mesh=stack=2,tensor=8 --output=runs/pod
      on 16 chips; start the same line on every host of a pod

what the model is compared with (--against, by default all that mean something for it):
{comparators}

A sample is a call that draws --tokens tokens, as generation does, over these tokens. Programs are sampled in turns:
what slows the machine down slows all of them. Parts of a step are differences of two programs, with and without.
--output=DIR gets results.json, PNG pictures and report.html, which opens offline; what is there is never overwritten.
"""


def add_command(commands: Any) -> None:
    """Add `decode` to the commands of `stagjax bench`."""
    parser = add_subcommand(
        commands,
        "decode",
        "measure decode steps and prefills, by part, beside what one could run instead",
        EPILOG.replace("{comparators}", _comparators()),
    )
    add_config_argument(parser)
    add = parser.add_argument
    add("--batch", type=counts, default="1", metavar="B[,B...]", help="rows decoded at once (default: 1)")
    add(
        "--context",
        type=counts,
        metavar="S[,S...]",
        help="slots of the caches, all filled; default: data.row_length",
    )
    add("--mesh", default="", metavar="stack=P,tensor=N", help="default: a slice a stack, on all devices")
    add("--against", default="all", metavar="A,B,...", help="comparators, all (the default) or none; see below")
    add("--split", default="model,baseline_slice", metavar="A,B,...", help="whose steps are split by part, or none")
    add("--no-prefill", action="store_true", help="leave prefill out")
    add("--repeats", type=count, default=20, metavar="N", help="samples of each program (default: 20)")
    add(
        "--warmup",
        type=count_or_none,
        default=2,
        metavar="N",
        help="calls before the first sample (default: 2)",
    )
    tokens = number(Number(int, 2, 32))
    add("--tokens", type=tokens, default=16, metavar="N", help="tokens of one call, 2 to 32 (default: 16)")
    add("--heads", default="padded", metavar="HOW", help="heads that devices do not divide: padded, repeated")
    add(
        "--rows",
        type=count,
        metavar="N",
        help="pad rows of products to a multiple; default: 8 on a TPU, else 1",
    )
    add_output_arguments(parser)
    parser.set_defaults(measure=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    from stagjax.bench.cases import Subject, cases, default_mesh
    from stagjax.errors import unknown
    from stagjax.experiment import load_config
    from stagjax.mesh import DecodeMesh

    config = load_config(args.config, args.overrides)
    batches, contexts = args.batch, args.context or [config.data.row_length]
    against = _names("--against", args.against, tuple(COMPARATORS))
    split = _names("--split", args.split, ("model", *COMPARATORS))
    if args.heads not in ("padded", "repeated"):
        raise unknown("--heads", args.heads, ("padded", "repeated"))
    check_output(args.output)

    import jax

    from stagjax.bench.fitting import fit
    from stagjax.bench.latency import SWEPT, LatencyBenchmark, Settings
    from stagjax.bench.machine import describe

    settings = Settings(args.repeats, args.warmup, args.tokens)
    settings.check()
    sizes = DecodeMesh.parse(args.mesh) if args.mesh else None
    start(args)
    devices = jax.device_count()
    if sizes is None:
        enough = devices >= config.model.num_stacks
        sizes = default_mesh(config.model, "parallel", devices) if enough else DecodeMesh()
    name = args.config.partition(":")[2].partition(",")[0]
    subject = Subject(name, config.model, sizes, args.heads, args.rows)
    head = {
        "benchmark": "decode",
        "config": args.config,
        "machine": describe(),
        "settings": {"repeats": args.repeats, "warmup": args.warmup, "tokens_per_call": args.tokens},
        "notes": _notes(config.model, sizes),
        "roles": COMPARATORS,
    }
    points = [(batch, context) for context in contexts for batch in batches]
    cases(subject, *points[0], against)  # whatever does not fit together is said before anything is compiled
    report = Report(args.output, head)
    with progress(report.first) as on_step:
        benchmark = LatencyBenchmark(subject, settings, on_step)
        for number, (batch, context) in enumerate(points):
            roles = against if number == 0 else [role for role in against if role in SWEPT]
            benchmark.decode(batch, context, roles)
            report.keep(benchmark.result)
        if split:
            benchmark.split(*points[0], split)
            report.keep(benchmark.result)
        if not args.no_prefill:
            benchmark.prefill(*points[0])
    fitted = fit(benchmark.result["rows"])
    if fitted is not None:
        report.head["notes"].append(
            f"the ledger's constants that fit these {fitted.steps} steps best, over {fitted.compute} computing, leave "
            f"{fitted.error_ms:.3f} ms unexplained: stagjax plan {fitted.option}"
        )
    report.finish(benchmark.result)
    return 0


def _notes(model: Any, sizes: Any) -> list[str]:
    """Say what the figures cannot say."""
    notes = platform_notes()
    if model.num_stacks > 1 and sizes.stack == 1:
        notes.append(
            "all stacks run on the same devices, where staggering saves nothing (shared weights are read once); "
            "give each a slice: --mesh=stack=P, on a CPU with --local-processes=P"
        )
    return notes


def _names(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    from stagjax.errors import unknown

    if text in ("all", "none"):
        return list(known) if text == "all" else []
    names = text.split(",")
    for name in names:
        if name not in known:
            raise unknown(option, name, (*known, "all", "none"))
    return names


def _comparators() -> str:
    """Return the comparators for `--help`."""
    return "\n".join(f"  {name:16}{text}" for name, text in COMPARATORS.items())
