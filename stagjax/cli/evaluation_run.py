"""What `evaluate` and `sweep` share: how rows of results are made, how far they are, how they end."""

import argparse
import contextlib
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from stagjax.cli.hosts import add_host_arguments, start
from stagjax.printable import one_line

SHOWN_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def add_data_argument(parser: argparse.ArgumentParser, first: str = "") -> None:
    """Add `--data-dir`; `first` is what counts before the environment."""
    text = f"directory of the official files (default: {first}the environment's STAGJAX_DATA_DIR, or data)"
    parser.add_argument("--data-dir", metavar="DIR", help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides how work is done, and not what its results are."""
    parser.add_argument(
        "--mesh",
        default="",
        metavar="data=G,stack=P,tensor=N",
        help="devices: data=G divides the rows over G groups, stack=P gives each of P stacks a slice of its own, "
        "tensor=N divides a slice's layers; default: data=all devices",
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="execute the programs that a model writes (MBPP), isolated; without it they are left out",
    )
    add_host_arguments(parser)


class Run:
    """One command's work on rows of results: prepared before any data is read or model loaded.

    Raises:
      UserError: programs are to be executed, and nothing isolates them here; or a mesh that does not fit.
    """

    def __init__(self, args: argparse.Namespace, data_dir: str):
        import jax

        from stagjax.bench.machine import describe
        from stagjax.evaluation.sandbox import find_isolation
        from stagjax.evaluation.sweep import Means
        from stagjax.mesh import DecodeMesh, decoding_mesh

        isolation = find_isolation() if args.allow_code_execution else None
        sizes = DecodeMesh.parse(args.mesh) if args.mesh else None
        start(args)
        sizes = sizes or DecodeMesh(data=jax.device_count())
        decoding_mesh(sizes)
        self.first = jax.process_index() == 0
        self.means = Means(data_dir, sizes, isolation, describe())
        self.notes = (
            [] if isolation is None else [f"programs of models were executed isolated: {isolation.description}"]
        )

    def results(self, rows: Sequence[Any], directory: pathlib.Path, again: str) -> dict[str, Any]:
        """Return the results of rows; cells are kept in `directory`.

        Args:
          rows: `stagjax.evaluation.results.Row`.
          directory: of cells.
          again: what is kept if it is told to stop.

        Raises:
          Preempted: told to stop by SIGTERM.
          KeyboardInterrupt: by Ctrl-C.
        """
        from stagjax.evaluation.cells import Cells
        from stagjax.evaluation.results import collect
        from stagjax.evaluation.sweep import run_sweep

        works = [work for row in rows for work in row.works.values()]
        with _listening(self.first, again) as listener:
            outcomes = run_sweep(works, Cells(directory), self.means, listener)
        return collect(rows, outcomes) | {"machine": self.means.machine, "notes": self.notes}


def status_of(results: dict[str, Any]) -> int:
    """Return the exit status: 2 if data or another input was bad, 3 if a cell failed otherwise, else 0."""
    failed = [cell for row in results["rows"] for cell in row["cells"].values() if cell["status"] == "failed"]
    if any(not cell["by_input"] for cell in failed):
        return 3
    return 2 if failed else 0


@contextlib.contextmanager
def _listening(first: bool, again: str) -> Iterator[Any]:
    """Yield who is told of progress: a bar, or lines; signals end the work where it can be taken up again."""
    import jax
    import rich.console

    from stagjax.errors import Preempted
    from stagjax.evaluation.sweep import Listener
    from stagjax.training.interrupts import Interrupts

    console = rich.console.Console(stderr=True, quiet=not first)

    def stopped(number: int | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped by Ctrl-C: {again}")
        if number:
            raise Preempted(f"told to stop: {again}")

    with Interrupts() as interrupts, _Bar(console) as bar:
        yield Listener(
            progress=bar.update,
            note=bar.note,
            between=lambda: stopped(interrupts.caught if interrupts.stop() else 0),
            stop=lambda: stopped(interrupts.caught) if jax.process_count() == 1 else None,
        )


class _Bar:
    """Shows requests answered, the time left, and which cell is worked on."""

    def __init__(self, console: Any):
        import rich.progress

        self._console = console
        self._columns = (
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[left]}", markup=False),
            rich.progress.TextColumn("{task.description}", markup=False),
        )
        self._bar = rich.progress.Progress(*self._columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._begun: float | None = None
        self._from = self._shown = 0.0
        self._ended = -1

    def __enter__(self) -> "_Bar":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, text: str) -> None:
        """Show how much is done."""
        from stagjax.reporting.progress import duration

        text = one_line(text)
        now = time.monotonic()
        if self._begun is None:
            # The first batch took the compiler's time, and what was there already none.
            self._begun, self._from = now, done
        rate = (done - self._from) / (now - self._begun) if now > self._begun else 0.0
        left = f"{duration((total - done) / rate)} left" if rate and done < total else ""
        self._bar.update(self._task, completed=done, total=total, left=left, description=text)
        ended = done == total and self._ended != total
        if not self._console.is_terminal and (now - self._shown >= SHOWN_EVERY or ended):
            self._shown, self._ended = now, done
            self.note("  ".join(part for part in (f"{done}/{total} requests", left, text) if part))

    def note(self, text: str) -> None:
        """Print a line."""
        from stagjax.reporting.console import plain

        self._console.print(plain(text), soft_wrap=True)
