"""Goodput: where a run's wall time went, over all its restarts, and how much of it made steps that count.

Every moment of a process belongs to exactly one of `PHASES`. Time between processes is "down". What is done again after
a kill or a rollback was "lost": it is known from where the account stood at the checkpoint that the run goes on from.
The terms and the idea (goodput as the share of wall time spent on steps that lasted, badput by its causes, disruptions
undoing steps) are those of Google's ml-goodput-measurement.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from stagjax.files import read_json, write_whole

FILE = "goodput.json"

PHASES = {
    "step": "training steps that count",
    "input": "devices idle, no batch ready",
    "checkpoint": "saving, as far as training waited",
    "validation": "validating",
    "compile": "compiling, and making the first state",
    "restore": "reading a checkpoint",
    "start": "checking the workdir, loading the data",
    "lost": "done again after a kill or a rollback",
    "down": "between two processes of the run",
    "other": "all else",
}

UNDONE = ("step", "input", "validation")
"""Phases whose time is lost where a run goes back."""

MARKS = 100
"""Checkpoints to which a run can go back with what was lost being known."""

SECONDS_BETWEEN_WRITES = 30.0
"""And at each checkpoint and each validation; a killed process leaves no later account."""


class Goodput:
    """The account of one run; it begins in phase "other".

    Args:
      file: that holds the account over restarts; None to hold it in memory only.
      sign_of_life: a file that an earlier process wrote to more often. What it did after the account was last written,
        which is after its last checkpoint, is lost; "down" is what follows.
      clock: seconds that a phase takes.
      wall: seconds since 1970, for the time between processes.

    Raises:
      UserError: the file is damaged.
    """

    def __init__(
        self,
        file: pathlib.Path | None,
        sign_of_life: pathlib.Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ):
        self._file, self._clock, self._wall = file, clock, wall
        self._seconds = dict.fromkeys(PHASES, 0.0)
        # Checkpoint to what the undone phases had taken when it was saved.
        self._marks: dict[int, dict[str, float]] = {}
        self._phase, self._since, self._written = "other", clock(), clock()
        if file is not None and file.exists():
            seen = sign_of_life.stat().st_mtime if sign_of_life is not None and sign_of_life.exists() else 0.0
            read_json(file, "remove it to begin the account anew", lambda account: self._go_on(account, seen))

    def _go_on(self, account: dict[str, Any], seen: float) -> None:
        seconds = {name: float(account["seconds"][name]) for name in PHASES}
        marks = {int(step): {name: float(mark[name]) for name in UNDONE} for step, mark in account["marks"].items()}
        seen = max(seen, account["written"])
        seconds["lost"] += seen - account["written"]
        seconds["down"] += max(0.0, self._wall() - seen)
        self._seconds, self._marks = seconds, marks

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, and what follows as what came before."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> str:
        """Count the time from now on as `name`; return the phase that ends."""
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, name, now
        return before

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase up to now."""
        self.enter(self._phase)
        return dict(self._seconds)

    def mark(self, step: int) -> None:
        """Note how things stand as step `step` is saved; the newest `MARKS` such notes are kept."""
        seconds = self.seconds()
        self._marks[step] = {name: seconds[name] for name in UNDONE}
        self._marks = {newest: self._marks[newest] for newest in sorted(self._marks)[-MARKS:]}

    def undo(self, step: int) -> float:
        """Count as lost what was done since step `step` (0 for the beginning); return how many seconds that is."""
        seconds = self.seconds()
        # A checkpoint without a mark was made when nobody kept an account.
        mark = dict.fromkeys(UNDONE, 0.0) if step == 0 else self._marks.get(step, seconds)
        lost = sum(seconds[name] - mark[name] for name in UNDONE)
        self._seconds |= {name: mark[name] for name in UNDONE}
        self._seconds["lost"] += lost
        self._marks = {marked: mark for marked, mark in self._marks.items() if marked <= step}
        return lost

    def write(self, only_if_due: bool = False) -> None:
        """Write the account to its file.

        Args:
          only_if_due: do nothing within `SECONDS_BETWEEN_WRITES` of the last time.

        Raises:
          OSError: the file cannot be written.
        """
        now = self._clock()
        if self._file is None or (only_if_due and now - self._written < SECONDS_BETWEEN_WRITES):
            return
        self._written = now
        account = {"seconds": self.seconds(), "marks": self._marks, "written": self._wall()}
        write_whole(self._file, json.dumps(account, indent=2) + "\n")

    def metrics(self) -> dict[str, float]:
        """Return the seconds of each phase, and the share that is goodput, by the names of metrics."""
        seconds = self.seconds()
        share = seconds["step"] / max(sum(seconds.values()), 1e-9)
        return {f"goodput/{name}_seconds": value for name, value in seconds.items()} | {"goodput/share": share}
