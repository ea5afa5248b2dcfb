"""What `stagjax data prepare` and `verify` show while they work: a bar on a terminal, plain lines in a log."""

import time
from typing import Self

import rich.console
import rich.progress
import rich.text

from stagjax.data.receipts import Receipt
from stagjax.printable import one_line

_LINE_SECONDS = 30.0  # Between lines, where there is no terminal.
_SHOWN = 3  # Faults of a shard that are named when it is done.


class PreparationProgress:
    """Shows bytes read, speed and time left; use it as a context manager.

    Args:
      verb: what is done with the bytes, e.g. "reading".
      console: where to write; standard error by default.
    """

    def __init__(self, verb: str, console: rich.console.Console | None = None):
        self._console = console or rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.DownloadColumn(binary_units=False),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal or self._console.is_dumb_terminal,
        )
        self._verb, self._task = verb, self._bar.add_task(verb)
        self._shards = self._done = self._total = self._before = 0
        self._line = time.monotonic()

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def begin(self, num_shards: int, num_done: int, total_bytes: int, done_bytes: int) -> None:
        """Say how much there is, and what was done by an earlier run."""
        self._shards, self._done, self._total, self._before = num_shards, num_done, total_bytes, done_bytes
        if num_done:
            self.note(f"{num_done} of {num_shards} shards are there already")
        self._bar.update(self._task, total=total_bytes, completed=done_bytes)

    def advance(self, done_bytes: int) -> None:
        """Show that `done_bytes` were read by this run."""
        done = self._before + done_bytes
        self._bar.update(self._task, completed=done)
        if self._bar.disable and time.monotonic() - self._line > _LINE_SECONDS:
            self._line = time.monotonic()
            self.note(
                f"{self._verb}: {done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB ({done / max(1, self._total):.0%})"
            )

    def finished(self, receipt: Receipt) -> None:
        """Say that a shard is done, what came of it, and what is wrong with it."""
        self._done += 1
        parts = receipt.parts.values()
        tokens, rows = sum(part.tokens for part in parts), sum(part.rows for part in parts)
        documents = sum(part.documents for part in parts)
        self.note(
            f"{receipt.name}: {documents:,} documents, {tokens:,} tokens in {rows:,} rows "
            f"({self._done} of {self._shards} shards)"
        )
        cases = [(kind, case) for kind, part in receipt.faults.items() for case in part["first"]]
        for kind, case in cases[:_SHOWN]:
            self.note(f"  {kind}: {case['where']}: {case['detail']}")
        count = sum(part["count"] for part in receipt.faults.values())
        if count > _SHOWN:
            self.note(f"  and {count - _SHOWN:,} more")

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one; names of files in it cannot make it two."""
        text = one_line(text)
        if self._bar.disable:
            # Not through rich, which would wrap or pad lines to a width that a file does not have.
            print(text, file=self._console.file, flush=True)
        else:
            self._console.print(rich.text.Text(text), soft_wrap=True)
