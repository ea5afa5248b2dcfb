"""What happens when a worker ends: the rules of exit statuses, the same for every target."""

import dataclasses
import enum
from collections.abc import Iterable, Sequence

PREEMPTED = 75
INTERRUPTED = 130
KILLED = 137
SIGNALS = tuple(128 + number for number in range(1, 32) if 128 + number != INTERRUPTED)
"""How a shell and Kubernetes report a process that a signal ended; 130 is Ctrl-C, by which a person said stop."""

MEANINGS = {
    0: "done",
    1: "a bug of stagjax, see the traceback",
    2: "bad input",
    3: "the run failed",
    PREEMPTED: "preempted and saved",
    INTERRUPTED: "Ctrl-C, saved",
}


class Verdict(enum.Enum):
    """What to do with a run."""

    WAIT = "wait"
    DONE = "done"
    RESTART = "restart"
    STOP = "stop"


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """One worker as it is seen now.

    Attributes:
      name: for people.
      status: exit status, None while it runs.
      ended: seconds since 1970 when it ended.
      note: what is known besides, e.g. that its machine is gone.
      said: the last line of its log, once it has ended.
    """

    name: str
    status: int | None = None
    ended: float = 0.0
    note: str = ""
    said: str = ""

    def __str__(self) -> str:
        """Return e.g. "worker 3 ended with 75 (preempted and saved): stagjax: SIGTERM: step 12 is saved"."""
        if self.status is None:
            return f"{self.name} is running"
        meaning = self.note or MEANINGS.get(self.status) or ended_by(self.status)
        said = f": {self.said}" if self.said else ""
        return f"{self.name} ended with {self.status} ({meaning}){said}"


def ended_by(status: int) -> str:
    """Return in words what an exit status beyond the known ones stands for."""
    return f"signal {status - 128}" if status in SIGNALS else "not a status of stagjax"


def restartable(also: Iterable[int] = ()) -> list[int]:
    """Return the statuses after which all workers start again: 75, signals, and those that the user adds."""
    return sorted({PREEMPTED, *SIGNALS, *also})


def judge(states: Sequence[WorkerState], also: Iterable[int] = ()) -> tuple[Verdict, WorkerState | None]:
    """Return what to do, and the worker that decided it.

    The first that failed decides: the others fail because of it (a host that was killed makes its peers end with 3,
    lost host, which alone would mean stop).

    Args:
      states: of all workers.
      also: statuses that restart besides 75 and signals.
    """
    failed = [state for state in states if state.status]
    if failed:
        first = min(failed, key=lambda state: state.ended)
        return (Verdict.RESTART if first.status in restartable(also) else Verdict.STOP), first
    running = any(state.status is None for state in states)
    return (Verdict.WAIT if running else Verdict.DONE), None


@dataclasses.dataclass
class Budget:
    """How many restarts in a row a run may have, and the pause before each.

    An attempt that lasted `healthy_after` seconds begins a new row: spot capacity may come and go for weeks, but what
    dies at every start is given up.

    Attributes:
      max_restarts: in a row.
      backoff: seconds before the first, doubled each time, at most `max_backoff`.
      healthy_after: seconds.
      max_backoff: seconds.
      used: restarts of this row so far.
    """

    max_restarts: int
    backoff: float
    healthy_after: float = 600.0
    max_backoff: float = 300.0
    used: int = 0

    def next_pause(self, lasted: float) -> float | None:
        """Return the seconds to wait before the next attempt, None if there is to be none.

        Args:
          lasted: seconds that the attempt ran.
        """
        if lasted >= self.healthy_after:
            self.used = 0
        if self.used >= self.max_restarts:
            return None
        self.used += 1
        return min(self.backoff * 2 ** (self.used - 1), self.max_backoff)
