"""What follows from a bad step: go on, stop, or roll back, and which batches a run that rolled back passes over.

A rollback restores the newest checkpoint that was validated (one saved because the run was told to stop is not: an
unbroken run would not have it) and goes on with the batches behind the bad one: those read since the
checkpoint are not read again, as was done for PaLM (arXiv 2204.02311, section 5.1), because a spike comes of some
batches meeting some parameters, not of either alone.

Which batches were passed over is part of every later checkpoint, so a run killed at any time goes on with the very
batches of the unbroken one. Killed between a rollback and the next checkpoint it meets the same bad step again, and
decides the same again. All decisions follow from metrics that every host has alike.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from stagjax.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class SkippedBatches:
    """The batches that a run passes over; without any, step n (from 0) reads batch n.

    Attributes:
      ranges: [first, end) in ascending order, apart from each other or adjacent.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_metadata(cls, ranges: Iterable[Iterable[int]]) -> "SkippedBatches":
        """Return what a checkpoint's metadata holds as lists."""
        return cls(tuple(tuple(pair) for pair in ranges))

    def batch(self, step: int) -> int:
        """Return the number of the batch that is read by the step which follows `step` steps."""
        for first, end in self.ranges:
            if step >= first:
                step += end - first
        return step

    def since(self, checkpoint: int, step: int) -> "SkippedBatches":
        """Return these and the batches that were read after step `checkpoint` up to `step`, its own included."""
        first, end = self.batch(checkpoint), self.batch(step - 1) + 1
        # Others lie inside the new one where the run has gone back behind the checkpoint of an earlier rollback.
        apart = [pair for pair in self.ranges if not first <= pair[0] < end]
        return SkippedBatches(tuple(sorted([*apart, (first, end)])))

    @property
    def total(self) -> int:
        """How many they are."""
        return sum(end - first for first, end in self.ranges)


class BadStep(Exception):
    """A step that the run cannot go on from; the message says what is wrong with it.

    Attributes:
      step: its number, from 1.
      policy: "stop" or "rollback".
      reason: the message.
    """

    def __init__(self, step: int, policy: str, reason: str):
        super().__init__(reason)
        self.step, self.policy, self.reason = step, policy, reason


class Judge:
    """Applies the policies of a config to the metrics of each step."""

    def __init__(self, training: TrainingConfig):
        self._training = training

    def check_step(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Return what to tell the user of a step whose update was skipped; None for a good step.

        Args:
          step: from 1.
          metrics: of `make_train_step`.

        Raises:
          BadStep: the policy is to stop or to roll back, or too many steps in a row were skipped.
        """
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])
        if finite and not metrics["spike"]:
            return None
        policy = self._training.spikes if finite else self._training.nonfinite
        values = f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}"
        what = f"step {step}: {values} ({'a spike' if finite else 'not finite'})"
        if policy != "skip":
            raise BadStep(step, policy, what)
        in_a_row, limit = round(metrics["skipped_in_a_row"]), self._training.max_recoveries
        if in_a_row > limit:
            raise BadStep(step, "stop", f"{what}, after {limit} skipped ones in a row (training.max_recoveries)")
        return f"{what}: its update is skipped, {in_a_row} in a row, {round(metrics['skipped'])} in all"

    def check_validation(self, step: int, loss: float) -> None:
        """Raise `BadStep` for a validation loss that is not finite.

        Parameters can be lost in an update whose loss and gradient were finite. Nothing can be skipped any more then.
        """
        if not math.isfinite(loss):
            policy = "rollback" if self._training.nonfinite == "rollback" else "stop"
            raise BadStep(step, policy, f"step {step}: validation loss {loss} (not finite)")
