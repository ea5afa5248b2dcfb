"""Rules for single values: type, range and remedy in one line, the same for config fields, arguments and flags."""

import dataclasses
import math
import numbers
from typing import Any, Protocol

from stagjax.errors import UserError, unknown

INT32_MAX = 2**31 - 1
FLOAT32_TINY, FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The least positive number that XLA does not take for 0 in float32, and the greatest."""


class Rule(Protocol):
    """What a value may be."""

    def check(self, name: str, value: Any) -> None:
        """Raise `UserError`, one line with the name, the value, the rule and the remedy, for what it may not be."""


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
      any_size: values that float32 takes for 0 or infinite are as good as others.
    """

    kind: type
    low: float = 1
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    hint: str = ""
    any_size: bool = False

    def broken(self, value: Any) -> str | None:
        """Return what is wrong with a value and what to use instead; None where nothing is."""
        fault = self._fault(value)
        if fault and fault.startswith("is over"):
            return f"{fault}; use {dataclasses.replace(self, high=self.most).range}"
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
        if self.kind is float and self.open_high and value >= self.high * (1 - 2.0**-25):
            return f"is {_plain(self.high)} in float32"
        if self.kind is float and not self.any_size and not FLOAT32_TINY <= abs(value or 1) <= FLOAT32_MAX:
            return f"is {'0' if abs(value) < 1 else 'infinite'} in float32"
        return None


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or false, no number."""

    def check(self, name: str, value: Any) -> None:
        """Raise `UserError` for anything else."""
        if not isinstance(value, bool):
            raise UserError(f"{name}={shown(value)} is {type(value).__name__}, not bool; use True or False")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text with something in it; or one of `known`, if there are any.

    Attributes:
      known: all values.
      hint: what to use.
    """

    known: tuple[str, ...] = ()
    hint: str = "a text"

    def check(self, name: str, value: Any) -> None:
        """Raise `UserError` for anything else."""
        remedy = f"use {' or '.join(map(repr, self.known)) or self.hint}"
        if not isinstance(value, str):
            raise UserError(f"{name}={shown(value)} is {type(value).__name__}, not str; {remedy}")
        if self.known and value not in self.known:
            raise unknown(name, value, self.known)
        if not value.strip() or "\0" in value:
            raise UserError(f"{name}={shown(value)} names nothing; {remedy}")


@dataclasses.dataclass(frozen=True)
class Maybe:
    """What another rule allows, or None."""

    rule: Rule

    def check(self, name: str, value: Any) -> None:
        """Raise `UserError` for anything else."""
        if value is None:
            return
        try:
            self.rule.check(name, value)
        except UserError as error:
            raise UserError(f"{error}, or None") from None


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number, in digits, and of no more of them than any number here has."""
    return text.isdecimal() and len(text) <= 18


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
TEMPERATURE = Number(float, 0, hint="0 is greedy, 1 the model as it is", any_size=True)
TOP_P = Number(float, 0, 1, open_low=True, hint="1 keeps all", any_size=True)
SECONDS = Number(float, 0, 1e6, open_low=True)
"""A time to wait: what is longer than 11 days does not fit into every system's clocks."""
ROW_LENGTH = Number(int, 2)
VALIDATION_PERCENT = Number(int, 1, 50)
