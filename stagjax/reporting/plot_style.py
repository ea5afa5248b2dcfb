"""What pictures of measurements share: colours, names of bars, legends."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from stagjax.printable import for_terminal
from stagjax.reporting.bench_rows import Row, is_plain

# Okabe and Ito's colours, which the colour-blind tell apart; their yellow is too light for lines.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#5C5C5C")
KINDS = {"the model": "#0072B2", "other forms of it": "#56B4E9", "plain decoders": "#E69F00"}
MARKERS = "osD^vPX"
FLOOR = {"color": "black", "linestyle": (0, (2, 1.5)), "linewidth": 1.4}


class Picture(NamedTuple):
    """A PNG in the report's directory.

    Attributes:
      path: of the file.
      title: what it is.
      caption: what is seen.
    """

    path: pathlib.Path
    title: str
    caption: str


def kind_of(row: Row) -> str:
    """Return which of `KINDS` a row is."""
    if row["role"] == "model":
        return "the model"
    return "plain decoders" if is_plain(row) else "other forms of it"


def unmarked(text: str) -> str:
    """Return text of which matplotlib takes nothing for a formula."""
    return text.replace("$", r"\$")


def name_lanes(axes: Any, names: Sequence[str], axis: str) -> None:
    """Name horizontal bars, the first one on top, and their axis."""
    axes.set_yticks(range(len(names)), [for_terminal(unmarked(name)) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(axis)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(left=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_legend(figure: Any, handles: Sequence[Any], names: Sequence[str], columns: int | None = None) -> None:
    """Draw a legend below everything."""
    names = [for_terminal(unmarked(name)) for name in names]
    place = {"loc": "outside lower center", "frameon": False, "fontsize": 8.5}
    figure.legend(handles, names, ncols=columns or len(names), **place)
