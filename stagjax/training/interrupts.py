"""SIGTERM and Ctrl-C as questions that the training loop answers between two steps, on all hosts alike."""

import signal
from types import FrameType, TracebackType

from stagjax import distributed
from stagjax.errors import Preempted


class Interrupts:
    """Context in which the first SIGTERM or SIGINT is noted, and a second Ctrl-C interrupts at once.

    On several hosts a signal to any of them is one to all.

    Attributes:
      caught: the signal's number, None while there was none.
    """

    def __init__(self):
        self.caught: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        """Install the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop(self) -> bool:
        """Return whether to stop here; ask once before each step. All hosts get the same answer at the same step."""
        agreed = distributed.stop_here(self.caught)
        self.caught = agreed if agreed is not None else self.caught
        return agreed is not None

    def error(self, step: int) -> BaseException:
        """Return what to raise once the state of `step` is saved: each signal has an exit status of its own."""
        saved = f"step {step} is saved; the same command goes on from there"
        if self.caught == signal.SIGINT:
            return KeyboardInterrupt(f"stopped by Ctrl-C: {saved}")
        return Preempted(f"told to stop: {saved}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt("stopped by a second Ctrl-C: nothing was saved since the last checkpoint")
        self.caught = number
