"""A table as plain data: the terminal and the page show the same cells."""

import dataclasses
import textwrap
from collections.abc import Sequence

import rich.box
import rich.table
import rich.text

from stagjax.printable import for_terminal
from stagjax.reporting.console import plain

MISSING = "-"
# Terminals of so many columns show more; what only the page shows has no terminal that is wide enough.
WIDE, PAGE = 110, 1_000_000
HEAD = 20


@dataclasses.dataclass(frozen=True)
class Column:
    """A column and its cells.

    Attributes:
      head: its name; a line break is where a terminal breaks it.
      cells: one a row, `MISSING` where a figure has no meaning.
      group: what kind of figures these are, e.g. "measured"; neighbours of one kind get a common head on the page.
      left: text, not figures.
      least: columns that a terminal must have to show it.
      whole: text that is not to be wrapped.
    """

    head: str
    cells: Sequence[str]
    group: str = ""
    left: bool = False
    least: int = 0
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
      title: above it.
      columns: all of one length.
      caption: below it.
      feet: how many of the last rows stand below a line, e.g. sums.
    """

    title: str
    columns: Sequence[Column]
    caption: str = ""
    feet: int = 0

    @property
    def filled(self) -> list[Column]:
        """The columns that have any figure."""
        return [column for column in self.columns if any(cell != MISSING for cell in column.cells)]


def terminal_table(grid: Grid, width: int) -> rich.table.Table:
    """Return the table of a grid for a terminal of `width` columns; only text wraps, figures stay whole."""
    columns = [column for column in grid.filled if width >= column.least]
    table = rich.table.Table(
        title=plain(grid.title),
        title_justify="left",
        caption=plain(grid.caption) if grid.caption else None,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        # Text, not strings: a name in square brackets would be taken for markup.
        table.add_column(
            rich.text.Text(for_terminal(column.head.strip() if column.left else _broken(column.head))),
            justify="left" if column.left else "right",
            no_wrap=column.whole or not column.left,
            overflow="fold",
        )
    rows = list(zip(*(column.cells for column in columns), strict=True))
    for number, row in enumerate(rows):
        if grid.feet and number == len(rows) - grid.feet:
            table.add_section()
        table.add_row(*map(plain, row))
    return table


def _broken(head: str) -> str:
    """Break a head where a long name in it would widen a column of figures."""
    return "\n".join(part for line in head.split("\n") for part in textwrap.wrap(line, HEAD) or [""])
