"""What all measuring commands share: where results go, how far they are, what is asked of their options."""

import argparse
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stagjax.cli.hosts import add_host_arguments


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--output` and the flags of several hosts."""
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="results.json, pictures and report.html")
    add_host_arguments(parser)


class Report:
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
        from stagjax.reporting.bench_tables import bench_tables
        from stagjax.reporting.console import plain, report_console

        whole = self.keep(result, complete=True)
        if not self.first:
            return
        console = report_console()
        for table in bench_tables(whole, console.width):
            console.print(table, "")
        for note in whole["notes"]:
            console.print(plain(f"note: {note}"))
        if self.output:
            from stagjax.reporting.bench_report import write_report

            write_report(whole, self.output)
            console.print(plain(f"written to {self.output}; open {self.output / 'report.html'}"))


@contextmanager
def progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what is called with (what is done, how much, of how much); a bar on the first process."""
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


def platform_notes() -> list[str]:
    """Say what figures of this platform cannot say."""
    import jax

    if jax.default_backend() != "cpu":
        return []
    return ["measured on a CPU: no accelerator was there, and nothing here says what one would do"]


def check_output(output: pathlib.Path | None) -> None:
    """Raise `UserError` before anything is measured if the results could not be written."""
    from stagjax.errors import UserError
    from stagjax.reporting.plots import require_matplotlib

    if output is None:
        return
    require_matplotlib()
    if (output / "results.json").exists():
        raise UserError(f"--output={output} holds the results of another run; choose another directory")
