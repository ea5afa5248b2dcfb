"""The tables of `stagjax checkpoint inspect`."""

from typing import Any

import rich.box
import rich.table
import rich.text

from stagjax.reporting.console import plain
from stagjax.reporting.tables import binary, scaled


def checkpoint_tables(facts: dict[str, Any]) -> list[rich.table.Table]:
    """Return what `inspection.inspect` found as tables: the checkpoints, the one described, its parameters."""
    tables = [_checkpoints_table(facts)] if facts["checkpoints"] else []
    return [*tables, _facts_table(facts), _parameters_table(facts)]


def _checkpoints_table(facts: dict[str, Any]) -> rich.table.Table:
    table = _table(f"checkpoints in {facts['path']}", ("step", "validation loss", "on disk"), ("state",))
    rows = facts["checkpoints"]
    losses = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
    for row in rows:
        loss = row["validation_loss"]
        marks = ["best"] if losses and loss == min(losses) else []
        marks += ["shown below"] if row["step"] == facts["step"] else []
        style = "red" if row["validity"].startswith("damaged") else None
        state = f"{row['validity']}{'; ' if marks else ''}{', '.join(marks)}"
        table.add_row(str(row["step"]), _loss(loss), binary(row["bytes"]), plain(state), style=style)
    return table


def _facts_table(facts: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    step = "" if facts["kind"] == "export" else f", step {facts['step']}"
    table.title = plain(f"{facts['kind']} {facts['path']}{step}")
    table.add_column()
    table.add_column(overflow="fold")
    # Of another version it may have other fields.
    source, vocabulary, length = (
        facts["manifest"].get(name, "unknown") for name in ("source", "vocabulary_name", "row_length")
    )
    rows = {
        "state": facts["validity"],
        "trained for": f"{facts['step']} steps",
        "validation loss": _loss(facts["metrics"]["validation_loss"]),
        "content key": facts["content_key"],
        "trained on": f"{source}, vocabulary {vocabulary}, rows of {length}",
    }
    for section, fields in facts["config"].items():
        rows[section] = "  ".join(f"{name}={value}" for name, value in fields.items())
    for name, value in rows.items():
        table.add_row(rich.text.Text(name, "bold"), plain(value))
    return table


def _parameters_table(facts: dict[str, Any]) -> rich.table.Table:
    rows = facts["parameters"]
    count, size = sum(row["count"] for row in rows), sum(row["bytes"] for row in rows)
    table = _table("parameters", ("shape", "dtype", "count", "bytes"), before=("name",))
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        table.add_row(plain(row["name"]), shape, plain(row["dtype"]), f"{row['count']:,}", binary(row["bytes"]))
    table.add_section()
    table.add_row(f"all {len(rows)}, {scaled(count)}", "", "", f"{count:,}", binary(size), style="bold")
    if facts["state_bytes"]:
        table.add_row("optimizer state, step", "", "", "", binary(facts["state_bytes"]))
    table.add_row("files", "", "", str(len(facts["files"])), binary(sum(facts["files"].values())))
    return table


def _table(
    title: str, numbers: tuple[str, ...], after: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> rich.table.Table:
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, title_justify="left")
    for names, justify in ((before, "left"), (numbers, "right"), (after, "left")):
        for name in names:
            table.add_column(name, justify=justify, no_wrap=names is not after)
    return table


def _loss(loss: float | None) -> str:
    return "not validated" if loss is None else f"{loss:.4f}"
