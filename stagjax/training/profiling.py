"""A profiler trace of chosen steps, and of nothing else: the devices are idle when it begins and when it ends."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Self

import jax

from stagjax.errors import UserError
from stagjax.rules import is_whole


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps to profile.

    Attributes:
      first: from 1.
      last: included.
    """

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the window of "FIRST:LAST"; raise `UserError` where it is none."""
        first, _, last = text.partition(":")
        if not (is_whole(first) and is_whole(last) and 1 <= int(first) <= int(last)):
            raise UserError(
                f"--profile-steps={text} is not FIRST:LAST, two step numbers from 1 on in ascending order, "
                "e.g. --profile-steps=100:110"
            )
        return cls(int(first), int(last))

    def check(self, steps: int) -> None:
        """Raise `UserError` if a run of `steps` steps ends before the window does."""
        if self.last > steps:
            raise UserError(
                f"--profile-steps={self.first}:{self.last} ends after the last step, training.steps={steps}; "
                "choose earlier ones"
            )


class Profiler:
    """Writes the trace of a window; without a window it does nothing.

    Args:
      window: what to profile, None for nothing.
      directory: that the trace is written below; each of several processes has a directory of its own there.
      done: steps done before this process began.
      note: shows a line to the user.
    """

    def __init__(self, window: Window | None, directory: pathlib.Path, done: int, note: Callable[[str], None]):
        self._directory, self._note = directory, note
        if jax.process_count() > 1:
            self._directory = directory / f"process_{jax.process_index()}"
        self._open = False
        self._window = window
        if window is None or done < window.first:
            return
        steps = f"--profile-steps={window.first}:{window.last}"
        if done >= window.last:
            note(f"{steps}: the run goes on from step {done}, behind them; nothing is profiled")
            self._window = None
        else:
            note(f"{steps}: the run goes on from step {done}; the steps after it are profiled")
            self._window = Window(done + 1, window.last)

    def begins_at(self, step: int) -> bool:
        """Return whether the trace is to begin right before step `step`, with the devices idle."""
        return self._window is not None and not self._open and step == self._window.first

    def ends_at(self, step: int) -> bool:
        """Return whether the trace is to end once step `step` is done."""
        return self._open and step == self._window.last

    def start(self) -> None:
        """Begin the trace."""
        with self._warning():
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._open = True

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """Return a context that names a step in the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stop(self) -> None:
        """End the trace, say where it is, and profile nothing more."""
        self._end(
            f"steps {self._window.first} to {self._window.last} are profiled in {self._directory}: open its newest "
            "perfetto_trace.json.gz at https://ui.perfetto.dev, or pip install xprof and run "
            f"tensorboard --logdir={self._directory}"
        )

    def close(self) -> None:
        """End a trace that the end of the run has cut short."""
        if self._open:
            self._end(f"the run ended within --profile-steps; what there is of the trace is in {self._directory}")

    def _end(self, text: str) -> None:
        self._open, self._window = False, None
        with self._warning():
            jax.profiler.stop_trace()
            self._note(text)

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        # A trace is no reason to end a run.
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._window = None
            self._note(f"warning: there is no profile in {self._directory}: {error}")
