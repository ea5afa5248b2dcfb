"""What a run shows while it works: a bar on a terminal, plain lines in a log."""

import collections
import time
from collections.abc import Callable
from typing import Any, Self

import rich.console
import rich.progress
import rich.table

from stagjax.printable import one_line
from stagjax.reporting.console import plain

WINDOW = 20
"""Updates from which speed and time left are computed."""


class Progress:
    """Shows how far a run is, its metrics, its speed and the time left; use it as a context manager.

    The time left comes from the last `WINDOW` updates and leaves out the time spent in a phase other than "training",
    so it does not start with the minutes of the first compilation.

    Args:
      total: steps at which the run ends.
      start: steps already done, by the run that this one resumes.
      unit: what the speed counts: `update(step, tokens_per_second=1900.0)` is shown as "1.9k tokens/s".
      console: where to write; standard error by default, so that standard output stays the command's result.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        unit: str = "tokens",
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._unit = unit
        self._text = ""
        self._console = console or rich.console.Console(stderr=True)
        self._clock = clock
        self._idle = 0.0
        self._phase_start: float | None = None
        self._marks: collections.deque[tuple[int, float]] = collections.deque(maxlen=WINDOW + 1)
        self._marks.append((start, self._busy_time()))
        self._bar = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.completed}/{task.total}"),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn(
                    "{task.fields[text]}", markup=False, table_column=rich.table.Column(no_wrap=True)
                ),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, completed=start, text="")

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is, on a line of its own."""
        if self._bar:
            self._bar.stop()

    @property
    def shows_every_step(self) -> bool:
        """Whether `update` changes what is shown; otherwise it adds a line, of which there should be fewer."""
        return self._bar is not None

    def update(self, step: int, **columns: Any) -> None:
        """Show that `step` steps are done; without a terminal this prints a line.

        Args:
          step: steps done in all, resumed ones included.
          **columns: shown by name, numbers with four digits, e.g. `loss=2.31`; the speed as the class says, without
            one steps a second.
        """
        if step <= self._marks[-1][0]:
            # The run has gone back: its speed is that of the steps from here on.
            self._marks.clear()
        self._marks.append((step, self._busy_time()))
        speed = columns.pop(f"{self._unit}_per_second", None)
        parts = [f"{name} {_number(value)}" for name, value in columns.items()]
        rate = self._steps_per_second()
        if speed is not None:
            parts.append(f"{_scaled(speed)} {self._unit}/s")
        elif rate:
            parts.append(f"{_scaled(rate)} steps/s")
        if rate and step < self._total:
            parts.append(f"{duration((self._total - step) / rate)} left")
        self._text = "  ".join(parts)
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._text)
        else:
            self._print("  ".join([f"step {step}/{self._total}", *parts]))

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        self._print(text)

    def phase(self, text: str) -> None:
        """Show what the run does from now on; the time until `phase("training")` does not count as slow training.

        Args:
          text: e.g. "compiling", "validating", "saving".
        """
        training = text == "training"
        if self._phase_start is not None:
            self._idle += self._clock() - self._phase_start
        self._phase_start = None if training else self._clock()
        if self._bar:
            self._bar.update(self._task, text=self._text if training else text)
            self._bar.refresh()
        elif not training:
            self._print(text)

    def _busy_time(self) -> float:
        now = self._clock() if self._phase_start is None else self._phase_start
        return now - self._idle

    def _steps_per_second(self) -> float | None:
        (first, begin), (last, end) = self._marks[0], self._marks[-1]
        return (last - first) / (end - begin) if last > first and end > begin else None

    def _print(self, text: str) -> None:
        if self._bar:
            self._console.print(plain(text), soft_wrap=True)
        else:
            # Not through rich, which would wrap or pad lines to a width that a file does not have.
            print(one_line(text), file=self._console.file, flush=True)


def duration(seconds: float) -> str:
    """Return seconds in the two largest units, e.g. "3m10s", "2h05m" or "4d02h"."""
    seconds = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{name}{seconds % size // small:02d}{small_name}"
    return f"{seconds}s"


def _scaled(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.1f}{suffix}"
    return f"{value:.3g}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
