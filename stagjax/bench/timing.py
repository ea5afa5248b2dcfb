"""Timing programs beside each other: in turns, so that what slows a shared machine down slows all of them."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one program in milliseconds, one a repeat, in the order in which they were taken."""

    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The middle one: what reports quote."""
        return statistics.median(self.samples_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """A quarter of the samples lie below the first, a quarter above the second."""
        if len(self.samples_ms) == 1:
            return self.samples_ms * 2
        first, _, third = statistics.quantiles(self.samples_ms, n=4, method="inclusive")
        return first, third

    def scaled(self, factor: float) -> "Timing":
        """Return the times multiplied, e.g. by a call's share of one token."""
        return Timing(tuple(factor * sample for sample in self.samples_ms))

    def minus(self, other: "Timing") -> "Timing":
        """Return the differences, repeat by repeat: what drifts from one repeat to the next cancels out."""
        return Timing(tuple(a - b for a, b in zip(self.samples_ms, other.samples_ms, strict=True)))

    def mean(self, other: "Timing") -> "Timing":
        """Return the means with another's samples, repeat by repeat."""
        return Timing(tuple((a + b) / 2 for a, b in zip(self.samples_ms, other.samples_ms, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return the median, the spread and the extremes, ready for JSON."""
        low, high = self.quartiles_ms
        return {
            "median_ms": self.median_ms,
            "quartiles_ms": [low, high],
            "extremes_ms": [min(self.samples_ms), max(self.samples_ms)],
            "samples": len(self.samples_ms),
        }


def in_turns(
    programs: Mapping[str, Callable[[], float]],
    repeats: int,
    warmup: int,
    on_sample: Callable[[str, int], None] = lambda name, repeat: None,
) -> dict[str, Timing]:
    """Time programs in turns: all of them once, then all of them again.

    Args:
      programs: each runs once, waits for its end, and returns the seconds that it took (not a number where this process
        had no part in it).
      repeats: samples of each.
      warmup: rounds before the first sample; their times are dropped.
      on_sample: called before each run, with the program's name and the repeat (negative while warming up).
    """
    samples: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(-warmup, repeats):
        for name, program in programs.items():
            on_sample(name, repeat)
            seconds = program()
            if repeat >= 0:
                samples[name].append(1e3 * seconds)
    return {name: Timing(tuple(times)) for name, times in samples.items()}
