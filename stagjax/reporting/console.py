"""Where reports are printed: as wide as the terminal, and wide enough for every table in a pipe or a log."""

import os

import rich.console
import rich.text

from stagjax.printable import one_line

PLAIN_WIDTH = 160


def report_console(highlight: bool = True) -> rich.console.Console:
    """Return the console of standard output; without a terminal it has `PLAIN_WIDTH` columns, or `COLUMNS`.

    Rich would take 80 there, and fold names that people search logs for.
    """
    console = rich.console.Console(highlight=highlight)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def plain(text: object) -> rich.text.Text:
    """Return a text of others for a table or a console: on one line, with markup, emoji and control codes as text."""
    return rich.text.Text(one_line(text))
