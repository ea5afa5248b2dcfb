"""The table of benchmarks: what is here, and what is missing."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.table

from stagjax.reporting.console import plain

VERIFIED = {True: " (official)", False: " (not the official file)", None: ""}


def inventory_table(rows: Sequence[dict[str, Any]], directory: str) -> rich.table.Table:
    """Return the table of `stagjax evaluate --list` (`stagjax.tasks.inventory`)."""
    table = rich.table.Table(title=plain(f"benchmarks, and their files in {directory}"), box=rich.box.SIMPLE_HEAD)
    table.title_justify = "left"
    table.add_column("task", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("documents", overflow="fold")
    table.add_column("examples from", overflow="fold")
    table.add_column("shots", justify="right")
    table.add_column("metrics", no_wrap=True)
    for row in rows:
        found = _count(row["documents"], row["problem"])
        table.add_row(row["name"], row["split"], found, _examples(row), str(row["shots"]), "\n".join(row["metrics"]))
    table.caption = "documents here of those in the official file; shots by default"
    table.caption_justify = "left"
    return table


def problem_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each file that is missing or malformed; a file that two benchmarks share has one."""
    return [*dict.fromkeys(row[key] for row in rows for key in ("problem", "examples_problem") if row[key])]


def _count(source: dict[str, Any] | None, problem: str) -> str:
    if source is None:
        return "[red]missing[/red]" if " is missing (" in problem else "[red]malformed[/red]"
    if source["partial"]:
        return f"{source['documents']:,} of {source['expected']:,}"
    return f"{source['documents']:,}{VERIFIED[source['verified']]}"


def _examples(row: dict[str, Any]) -> str:
    if row["examples_problem"] or isinstance(row["examples"], dict):
        return f"{row['examples_from']}: {_count(row['examples'], row['examples_problem'])}"
    return f"{row['examples_from']}: {row['examples']}" if row["examples"] else row["examples_from"]
