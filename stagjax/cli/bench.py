"""`stagjax bench`: how long a decode step, a prefill and a training step take on the devices that are here, and why."""

import argparse
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stagjax.bench.comparators import COMPARATORS
from stagjax.cli import add_config_argument

EPILOG = """\
examples:
  stagjax bench decode --config=experiments/stdlib.py:medium_separate_2x6 --local-processes=2 --output=runs/latency
  stagjax bench train --config=experiments/stdlib.py --variants=baseline_6,separate_2x3,shared_2x3

`stagjax bench COMMAND --help` explains a command's arguments. Everything is measured here and now, with random
parameters; what a machine would do that is not here is estimated by `stagjax plan`.
"""

DECODE_EPILOG = """\
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `stagjax bench`."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="bench_command", metavar="COMMAND", required=True)
    _add_decode(commands)


def _add_decode(commands: Any) -> None:
    parser = commands.add_parser(
        "decode",
        help="decode steps and prefills, by part, beside what one could run instead",
        description="Measure decode steps and prefills, by part, beside what one could run instead.",
        epilog=DECODE_EPILOG.replace("{comparators}", _comparators()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_argument(parser)
    add = parser.add_argument
    add("--batch", default="1", metavar="B[,B...]", help="rows decoded at once (default: 1)")
    add("--context", metavar="S[,S...]", help="slots of the caches, all filled; default: data.row_length")
    add("--mesh", default="", metavar="stack=P,tensor=N", help="default: a slice a stack, on all devices")
    add("--against", default="all", metavar="A,B,...", help="comparators, all (the default) or none; see below")
    add("--split", default="model,baseline_slice", metavar="A,B,...", help="whose steps are split by part, or none")
    add("--no-prefill", action="store_true", help="leave prefill out")
    add("--repeats", type=int, default=20, metavar="N", help="samples of each program (default: 20)")
    add("--warmup", type=int, default=2, metavar="N", help="calls before the first sample (default: 2)")
    add("--tokens", type=int, default=16, metavar="N", help="tokens of one call, 2 to 32 (default: 16)")
    add("--heads", default="padded", metavar="HOW", help="heads that devices do not divide: padded, repeated")
    add("--rows", type=int, metavar="N", help="pad rows of products to a multiple; default: 8 on a TPU, else 1")
    add("--output", type=pathlib.Path, metavar="DIR", help="results.json, pictures and report.html")
    _add_local_processes(parser)


def _add_local_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--local-processes",
        type=int,
        metavar="N",
        help="run on N processes of this machine, a part of its cores each, joined over the loopback network",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write; with --local-processes let others do it."""
    if args.local_processes is not None:
        from stagjax.local_processes import launch

        return launch(args.local_processes, [a for a in args.argv if not a.startswith("--local-processes")])
    return _decode(args)


def _decode(args: argparse.Namespace) -> int:
    from stagjax.bench.cases import Subject, cases, default_mesh
    from stagjax.errors import unknown
    from stagjax.experiment import load_config
    from stagjax.mesh import DecodeMesh

    config = load_config(args.config, args.overrides)
    batches = _numbers("--batch", args.batch)
    contexts = _numbers("--context", args.context or str(config.data.row_length))
    against = _names("--against", args.against, tuple(COMPARATORS))
    split = _names("--split", args.split, ("model", *COMPARATORS))
    if args.heads not in ("padded", "repeated"):
        raise unknown("--heads", args.heads, ("padded", "repeated"))
    _check_output(args.output)

    import jax

    from stagjax.bench.fitting import fit
    from stagjax.bench.latency import SWEPT, LatencyBenchmark, Settings
    from stagjax.bench.machine import describe
    from stagjax.distributed import start_up

    settings = Settings(args.repeats, args.warmup, args.tokens)
    settings.check()
    sizes = DecodeMesh.parse(args.mesh) if args.mesh else None
    start_up()
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
    report = _Report(args.output, head)
    with _progress(report.first) as on_step:
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


class _Report:
    """Where results go: the terminal and a directory, from the first process only."""

    def __init__(self, output: pathlib.Path | None, head: dict[str, Any]):
        import jax

        self.output, self.head, self.first = output, head, jax.process_index() == 0

    def keep(self, result: dict[str, Any], complete: bool = False) -> dict[str, Any]:
        """Write what has been measured so far: a killed run leaves it."""
        from stagjax.files import write_json

        whole = self.head | {"complete": complete} | result
        if self.first and self.output:
            write_json(self.output / "results.json", whole)
        return whole

    def finish(self, result: dict[str, Any]) -> None:
        """Print tables, draw pictures, write the page."""
        import rich.console

        from stagjax.reporting.bench_tables import bench_tables

        whole = self.keep(result, complete=True)
        if not self.first:
            return
        console = rich.console.Console()
        for table in bench_tables(whole, console.width):
            console.print(table, "")
        for note in whole["notes"]:
            console.print(f"note: {note}", highlight=False)
        if self.output:
            from stagjax.reporting.bench_report import write_report

            write_report(whole, self.output)
            console.print(f"written to {self.output}; open {self.output / 'report.html'}", highlight=False)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what is called with (what is done, how much, of how much); a bar on the first process."""
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text, done, total: progress.update(task, description=text, completed=done, total=total)


def _notes(model: Any, sizes: Any) -> list[str]:
    """Say what the figures cannot say."""
    import jax

    notes = []
    if jax.default_backend() == "cpu":
        notes.append("measured on a CPU: no accelerator was there, and nothing here says what one would do")
    if model.num_stacks > 1 and sizes.stack == 1:
        notes.append(
            "all stacks run on the same devices, where staggering saves nothing (shared weights are read once); "
            "give each a slice: --mesh=stack=P, on a CPU with --local-processes=P"
        )
    return notes


def _check_output(output: pathlib.Path | None) -> None:
    """Raise `UserError` before anything is measured if the results could not be written."""
    from stagjax.errors import UserError
    from stagjax.reporting.plots import require_matplotlib

    if output is None:
        return
    require_matplotlib()
    if (output / "results.json").exists():
        raise UserError(f"--output={output} holds the results of another run; choose another directory")


def _names(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    from stagjax.errors import unknown

    if text in ("all", "none"):
        return list(known) if text == "all" else []
    names = text.split(",")
    for name in names:
        if name not in known:
            raise unknown(option, name, (*known, "all", "none"))
    return names


def _numbers(option: str, text: str) -> list[int]:
    from stagjax.errors import UserError

    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option}={text} is no list of positive numbers; use e.g. 1 or 1,8")
    return [int(part) for part in parts]


def _comparators() -> str:
    """Return the comparators for `--help`."""
    return "\n".join(f"  {name:16}{text}" for name, text in COMPARATORS.items())
