"""Rules for single numbers: type, range and remedy in one line, the same for config fields, arguments and flags."""

import dataclasses
import math
import numbers
from typing import Any

from stagjax.errors import UserError

INT32_MAX = 2**31 - 1
FLOAT32_TINY = 2.0**-126
"""The least positive number that float32 holds exactly enough to divide by; XLA takes what is less for 0."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range.

    Attributes:
      kind: int, or float for any real number; a bool is neither.
      low: the least value.
      high: the greatest value; not told of where it is the largest of its kind.
      open_low: `low` itself is excluded.
      open_high: `high` itself is excluded.
      hint: said of the range, e.g. what the usual value is.
      underflows: positive values that float32 takes for 0 are as good as others.
    """

    kind: type
    low: float = 1
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    hint: str = ""
    underflows: bool = False

    def broken(self, value: Any) -> str | None:
        """Return what is wrong with a value and what to use instead; None where nothing is."""
        fault = self._fault(value)
        return fault and f"{fault}; use {self.range}"

    def check(self, name: str, value: Any) -> None:
        """Raise `UserError`, one line with the name, the value, the rule and the remedy, for a value outside."""
        broken = self.broken(value)
        if broken:
            raise UserError(f"{name}={shown(value)} {broken}")

    def parse(self, text: str) -> int | float:
        """Return the number that a text is, unchecked; raise `ValueError` for what is none."""
        return self.kind(text)

    @property
    def most(self) -> float:
        """The greatest value."""
        return (INT32_MAX if self.kind is int else math.inf) if self.high is None else self.high

    @property
    def range(self) -> str:
        """The range in words."""
        if self.high is None:
            words = f"more than {self.low:g}" if self.open_low else f"{self.low:g} or more"
        else:
            least = f"more than {self.low:g}, " if self.open_low else f"{_plain(self.low)} "
            words = f"{least}{'up to but not' if self.open_high else 'to'} {_plain(self.high)}"
        return f"{words} ({self.hint})" if self.hint else words

    def _fault(self, value: Any) -> str | None:
        kind = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return f"is {type(value).__name__}, not {self.kind.__name__}"
        if self.kind is float and not _finite(value):
            return "is not finite"
        if value < self.low:
            return f"is below {_plain(self.low)}"
        if value > self.most:
            return f"is over {_plain(self.most)}"
        if (self.open_low and value == self.low) or (self.open_high and value == self.high):
            return f"is not {'above' if value == self.low else 'below'} {value:g}"
        if self.kind is float and not self.underflows and 0 < abs(value) < FLOAT32_TINY:
            return "is 0 in float32"
        return None


def shown(value: Any) -> str:
    """Return a value for a message: one line, not too long."""
    try:
        text = ascii(value)
    except ValueError:  # an int of more digits than Python turns into text
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


COUNT = Number(int, 1)
COUNT_OR_NONE = Number(int, 0)
"""A count that may be 0: none of it."""
SEED = Number(int, 0, 2**32 - 1)
"""jax.random.key takes more modulo 2**32, without a word."""
TEMPERATURE = Number(float, 0, hint="0 is greedy, 1 the model as it is", underflows=True)
TOP_P = Number(float, 0, 1, open_low=True, hint="1 keeps all", underflows=True)
