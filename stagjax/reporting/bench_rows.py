"""Reading results of `stagjax bench`: what rows are called, where they were measured, how their figures are written."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from stagjax.reporting.grid import MISSING

Row = dict[str, Any]


class Point(NamedTuple):
    """What a decode step was measured at."""

    batch: int
    context: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"batch {self.batch}, {self.context} slots"


def points(rows: Sequence[Row]) -> list[Point]:
    """Return the points of rows, in their order."""
    return list(dict.fromkeys(Point(row["batch_asked"], row["context"]) for row in rows))


def at(rows: Sequence[Row], point: Point) -> list[Row]:
    """Return the rows of one point."""
    return [row for row in rows if Point(row["batch_asked"], row["context"]) == point]


def of_role(rows: Iterable[Row], role: str) -> Row | None:
    """Return the first row of a role."""
    return next((row for row in rows if row["role"] == role), None)


def mesh_text(mesh: dict[str, int]) -> str:
    """Return a mesh as slices x devices, e.g. "2x8"; copies in front, e.g. "2 of 1x8"."""
    devices = f"{mesh['stack']}x{mesh['tensor']}"
    return devices if mesh["data"] == 1 else f"{mesh['data']} of {devices}"


def full_name(row: Row) -> str:
    """Return a row's model with its way of decoding, and its rows where they are not those that were asked for."""
    name = row["name"] + (", recurrent" if row["decoding"] == "recurrent" else "")
    asked = row.get("batch_asked", row["batch"])  # of decode steps only
    return name if row["batch"] == asked else f"{name}, {row['batch']} rows"


def label(row: Row) -> str:
    """Return what tells a row from all others at its point."""
    return f"{full_name(row)} on {mesh_text(row['mesh'])}"


def short_name(row: Row, subject: str) -> str:
    """Return the name below one that says `subject` already: "window 128" for "shared_2x3, window 128"."""
    return full_name(row).removeprefix(f"{subject}, ")


def is_plain(row: Row) -> bool:
    """Say whether a row's model is a plain decoder."""
    return row["model"]["num_stacks"] == 1


def decimals(values: Iterable[float]) -> int:
    """Return how many decimals show three digits of the least of some times, three decimals at most."""
    least = min((abs(value) for value in values if value and math.isfinite(value)), default=1.0)
    return min(max(2 - math.floor(math.log10(least)), 0), 3)


def decode_decimals(result: dict[str, Any]) -> int:
    """Return the decimals of all decode steps of a result: one figure reads the same everywhere."""
    return decimals(row["measured"]["median_ms"] for row in result["rows"])


def split_decimals(result: dict[str, Any]) -> int:
    """Return the decimals of parts of decode steps, which are smaller than steps."""
    return min(decode_decimals(result) + 1, 3)


def prefill_decimals(result: dict[str, Any]) -> int:
    """Return the decimals of all prefills of a result."""
    return decimals(row["measured"]["median_ms"] for row in result["prefill"])


def number(value: float, digits: int) -> str:
    """Return a number to some decimals, without a minus where nothing is left of it."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def quartiles(timing: dict[str, Any], digits: int) -> str:
    """Return the middle half of the samples, e.g. "7.61 to 7.92"."""
    low, high = timing["quartiles_ms"]
    return f"{number(low, digits)} to {number(high, digits)}"


def spread(timing: dict[str, Any]) -> str:
    """Return how wide the middle half of the samples is, in percent of the median."""
    low, high = timing["quartiles_ms"]
    return percent((high - low) / timing["median_ms"])


def ratio(row: Row, role: str) -> str:
    """Return a row's time over that of a baseline."""
    return f"{row['ratios'][role]:.2f}" if role in row["ratios"] else MISSING


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.0f}%"


def roofline_warning(rows: Iterable[Row]) -> str | None:
    """Return a sentence on rows that took less than their roofline floor, which then bounds nothing; None without."""
    over = [row for row in rows if round(100 * row["roofline"]["share"]) > 100]
    if not over:
        return None
    source = over[0]["roofline"]["peaks"]["source"]
    why = "the peaks measured in this run are too low" if source == "measured" else "not all bytes counted are read"
    names = ", ".join(dict.fromkeys(map(label, over)))
    return f"Over 100% of its roofline, so that this floor is none ({why}): {names}."


def estimate_name(ledger: dict[str, Any]) -> str:
    """Return where an estimate has its computing and its collectives from."""
    return f"{ledger['compute']} + {ledger['calibration']}"
