"""A run on any target: start all workers, watch them, and start all again or stop as the rules say."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from tpu.restarts import INTERRUPTED, PREEMPTED, Budget, Verdict, WorkerState, judge


class Target(Protocol):
    """Where workers run.

    Attributes:
      poll_seconds: between two looks.
      detached: whether workers go on when the launcher ends.
    """

    poll_seconds: float
    detached: bool

    def prepare(self) -> None:
        """Make sure that the machines are there and set up."""

    def running(self) -> bool:
        """Return whether the run is already under way there."""

    def start(self, attempt: int) -> None:
        """Start every worker."""

    def states(self) -> Sequence[WorkerState]:
        """Return every worker's state."""

    def stop(self, number: int) -> None:
        """Send a signal to all that run, wait for them, and kill those that stay."""

    def gather(self, attempt: int) -> str:
        """Bring the workers' logs here and return where they are."""


class Stopped(Exception):
    """The launcher was told to stop.

    Attributes:
      number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def supervise(target: Target, budget: Budget, also: Sequence[int] = (), say: Callable[[str], None] = print) -> int:
    """Run until all workers are done or the run is given up; return the exit status.

    Args:
      target: where the workers run.
      budget: of restarts.
      also: statuses that restart besides 75 and signals.
      say: takes one line for the user.

    Returns:
      0, or the status of the worker that decided; 75 and 130 where the launcher itself was told to stop.
    """
    with _signals_raise():
        try:
            return _supervise(target, budget, also, say)
        except Stopped as stopped:
            return _stop(target, stopped.number, say)


def _supervise(target: Target, budget: Budget, also: Sequence[int], say: Callable[[str], None]) -> int:
    attempt = 0
    while True:
        begun = time.monotonic()
        if attempt == 0 and target.running():
            say("the run is under way there: watching it")
        else:
            target.prepare()
            target.start(attempt)
            say(f"started, attempt {attempt + 1}")
            begun = time.monotonic()
        verdict, first = _watch(target, also)
        if verdict is not Verdict.DONE:
            say(str(first))
            target.stop(signal.SIGTERM)
        say(f"logs: {target.gather(attempt)}")
        if verdict is Verdict.DONE:
            say("done")
            return 0
        if verdict is Verdict.STOP:
            say(f"not started again: status {first.status} would come again")
            return first.status
        pause = budget.next_pause(time.monotonic() - begun)
        if pause is None:
            say(f"given up after {budget.used} restarts in a row")
            return first.status
        say(f"all workers start again in {pause:g} s (restart {budget.used} of {budget.max_restarts} in a row)")
        time.sleep(pause)
        attempt += 1


def _watch(target: Target, also: Sequence[int]) -> tuple[Verdict, WorkerState | None]:
    while True:
        verdict, first = judge(target.states(), also)
        if verdict is not Verdict.WAIT:
            return verdict, first
        time.sleep(target.poll_seconds)


def _stop(target: Target, number: int, say: Callable[[str], None]) -> int:
    if target.detached:
        say("the launcher stops, the run goes on; the same command watches it again, the verb `stop` ends it")
    else:
        say("stopping all workers; they save first (Ctrl-C again kills them)")
        try:
            target.stop(number)
        except Stopped:
            target.stop(signal.SIGKILL)
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def raise_stopped(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, raise_stopped) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
