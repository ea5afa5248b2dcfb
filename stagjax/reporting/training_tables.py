"""Tables of measured training steps: how fast, and what they need; each fits 80 columns."""

from typing import Any

import rich.box
import rich.table


def training_tables(result: dict[str, Any]) -> list[rich.table.Table]:
    """Return the tables of `stagjax bench train` (the contents of results.json)."""
    rows = result["rows"]
    return [_speed(rows), _needs(rows)]


def _speed(rows: list[dict[str, Any]]) -> rich.table.Table:
    shape = {f"{row['global_batch']} rows of {row['row_length']} tokens" for row in rows}
    batch = shape.pop() if len(shape) == 1 else "batches of different sizes"
    table = _table(f"training, {batch}", ("ms a step", "spread", "drift", "tokens/s", "/ first", "MFU"))
    for row in rows:
        measured, rounds = row["measured"], row["rounds_ms"]
        low, high = measured["quartiles_ms"]
        table.add_row(
            row["name"],
            f"{measured['median_ms']:.1f}",
            f"{(high - low) / measured['median_ms']:.0%}",
            f"{max(rounds) / min(rounds) - 1:.0%}" if len(rounds) > 1 else "-",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['mfu']:.1%}",
        )
    peaks = "; ".join(
        f"{source} peak of {flops / 1e12:.3g} TFLOP/s a device"
        for source, flops in dict.fromkeys((row["peaks"]["source"], row["peaks"]["flops"]) for row in rows)
    )
    table.caption = f"spread: the middle half of the steps; drift: slowest over fastest round; MFU of the {peaks}"
    return table


def _needs(rows: list[dict[str, Any]]) -> rich.table.Table:
    told = any(row["memory"]["peak_bytes_per_device"] is not None for row in rows)
    columns = ("devices", "idle", "params", "FLOPs", "/ first", "GB", *(("GB used",) if told else ()))
    table = _table("what it takes: parameters, FLOPs a token, memory of a device", columns)
    for row in rows:
        memory = row["memory"]
        table.add_row(
            row["name"],
            training_mesh_text(row["mesh"]),
            "-" if row["bubble"] is None else f"{row['bubble']:.0%}",
            _short(row["parameters"], "B"),
            _short(row["flops_per_token"], "G"),
            f"{row['flops_ratio']:.2f}",
            f"{memory['compiled_bytes_per_device'] / 1e9:.2f}",
            *((_used(memory),) if told else ()),
        )
    lines = ["GB: of the compiled step"]
    if told:
        lines += ["GB used: the highest that was told; <: no higher than before in this process"]
    if any(row["bubble"] is not None for row in rows):
        lines += ["idle: share of a step that a slice waits while the pipeline fills and drains"]
    lines += ["compiling took " + ", ".join(f"{row['compile_seconds']:.1f}" for row in rows) + " s"]
    table.caption = "; ".join(lines)
    return table


def training_mesh_text(mesh: dict[str, int]) -> str:
    """Return the axes of a training mesh that divide something, a line each, e.g. "8 fsdp"; "1" for one device."""
    return "\n".join(f"{size} {axis}" for axis, size in mesh.items() if size > 1) or "1"


def _used(memory: dict[str, Any]) -> str:
    if memory["peak_bytes_per_device"] is None:
        return "-"
    return ("" if memory["peak_is_own"] else "<") + f"{memory['peak_bytes_per_device'] / 1e9:.2f}"


def _short(number: float, giga: str) -> str:
    """Return a number in millions, or in billions of the letter that is usual for what it counts."""
    return f"{number / 1e9:.2f}{giga}" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _table(title: str, columns: tuple[str, ...]) -> rich.table.Table:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("model", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
