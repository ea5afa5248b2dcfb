"""What a run tells of itself: metrics, the status line, the table of its wall time, and a warning of slow input."""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from stagjax.errors import RunFailed
from stagjax.reporting.metrics import MetricWriter
from stagjax.reporting.progress import Progress, duration
from stagjax.training.goodput import PHASES, Goodput

SLOW_INPUT = 0.1
"""Share of the time of training that devices wait for input, from which on the user is warned."""

_UNLOGGED = ("tokens", "spike", "skipped_in_a_row")

_RECENT = 20
"""Steps from which the status line's speed is computed."""


class Rates(NamedTuple):
    """How training went over some steps, validation and saving left out.

    Attributes:
      tokens_per_second: of steps and the waits for their input.
      input_share: of that time, for which devices waited for input.
    """

    tokens_per_second: float
    input_share: float


class _Mark(NamedTuple):
    tokens: float
    step_seconds: float
    input_seconds: float

    def rates_since(self, earlier: "_Mark") -> Rates:
        tokens, step, waiting = (now - before for now, before in zip(self, earlier, strict=True))
        seconds = max(step + waiting, 1e-9)
        return Rates(tokens / seconds, waiting / seconds)


class Watch:
    """Shows and writes what a run does.

    Args:
      writer: of the metrics.
      progress: what the user sees.
      goodput: the account of the wall time.
      flops_share: share of the devices' peak that one token per second makes; None where no peak is known.
      last_good: says which checkpoint is left, for the message of a run that fails.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        goodput: Goodput,
        flops_share: float | None,
        last_good: Callable[[], str],
    ):
        self.progress = progress
        self._writer, self._goodput, self._flops_share, self._last_good = writer, goodput, flops_share, last_good
        self._tokens = 0.0
        self._slow = self._unwritten = False
        # The writer has just touched its file: what is lost is counted from here.
        self._write_account()

    def begin(self) -> None:
        """Measure speed from here on."""
        self._logged = self._mark()
        self._recent = collections.deque([self._logged], maxlen=_RECENT + 1)

    def step(self, step: int, metrics: Mapping[str, float], log: bool) -> None:
        """Show a step.

        Args:
          step: from 1.
          metrics: of `make_train_step`.
          log: write them too, with the rates since they were last written.

        Raises:
          RunFailed: the disk is full or gone; the last good checkpoint is named.
        """
        self._tokens += metrics["tokens"]
        mark = self._mark()
        self._recent.append(mark)
        if log:
            rates, self._logged = mark.rates_since(self._logged), mark
            values = {name: value for name, value in metrics.items() if name not in _UNLOGGED} | self._speeds(rates)
            self.write(step, {f"train/{name}": value for name, value in values.items()})
            self._warn_of_input(rates.input_share)
        elif self.progress.shows_every_step:
            rates = mark.rates_since(self._recent[0])
        else:
            return
        speeds = self._speeds(rates)
        columns = {"loss": metrics["loss"], "bits_per_byte": metrics["bits_per_byte"]}
        if "mfu" in speeds:
            columns["mfu"] = f"{speeds['mfu']:.1%}"
        columns["input wait"] = f"{speeds['input_share']:.0%}"
        self.progress.update(step, **columns, tokens_per_second=rates.tokens_per_second)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics, and the goodput account where that is due.

        Raises:
          RunFailed: the disk is full or gone; the last good checkpoint is named.
        """
        with self._naming_what_is_left():
            self._writer.write(step, metrics)
        self._write_account(only_if_due=True)

    def rewind(self, step: int) -> None:
        """Drop what was written for steps after `step`: they are done again.

        Raises:
          RunFailed: the disk is full or gone; the last good checkpoint is named.
        """
        with self._naming_what_is_left():
            self._writer.rewind(step)
        self.begin()

    def goodput(self, step: int) -> None:
        """Write how the wall time was spent so far; raise as `write` does."""
        self.write(step, self._goodput.metrics())
        self._write_account()

    def end(self) -> None:
        """Show the table of the wall time."""
        self._write_account()
        for line in goodput_lines(self._goodput.seconds()):
            self.progress.note(line)

    def _mark(self) -> _Mark:
        seconds = self._goodput.seconds()
        return _Mark(self._tokens, seconds["step"], seconds["input"])

    def _speeds(self, rates: Rates) -> dict[str, float]:
        speeds = rates._asdict()
        if self._flops_share is not None:
            speeds["mfu"] = rates.tokens_per_second * self._flops_share
        return speeds

    def _warn_of_input(self, share: float) -> None:
        slow = share > SLOW_INPUT
        if slow and not self._slow:
            self.progress.note(
                f"warning: the devices wait for input {share:.0%} of the time: rows are read too slowly; faster "
                "storage for the data, or more processor cores, would help"
            )
        self._slow = slow

    def _write_account(self, only_if_due: bool = False) -> None:
        try:
            self._goodput.write(only_if_due)
        except OSError as error:
            # An account is no reason to end a run; what is wrong with the disk will be, if training needs it.
            if not self._unwritten:
                self.progress.note(f"warning: the goodput account cannot be written: {error.strerror}")
            self._unwritten = True

    @contextlib.contextmanager
    def _naming_what_is_left(self) -> Iterator[None]:
        try:
            yield
        except RunFailed as error:
            raise RunFailed(f"{error}; {self._last_good()}") from error


def goodput_lines(seconds: Mapping[str, float]) -> list[str]:
    """Return the table of an account as lines; phases that took no time are left out."""
    total = max(sum(seconds.values()), 1e-9)
    lines = [f"goodput {seconds['step'] / total:.1%} of {_time(total)} wall time"]
    for name, meaning in PHASES.items():
        if seconds[name] >= 0.0005 * total:
            lines.append(f"  {name:<10} {_time(seconds[name]):>8} {seconds[name] / total:>7.1%}  {meaning}")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)
