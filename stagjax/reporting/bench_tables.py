"""Tables of measurements: what was measured beside what is estimated, never in one column."""

from typing import Any

import rich.box
import rich.table


def bench_tables(result: dict[str, Any]) -> list[rich.table.Table]:
    """Return the tables of `stagjax bench` (the contents of results.json)."""
    rows = result["rows"]
    points = list(dict.fromkeys((row["batch_asked"], row["context"]) for row in rows))
    tables = [_latency([r for r in rows if (r["batch_asked"], r["context"]) == point], point) for point in points]
    if result["splits"]:
        tables.append(_splits(result["splits"]))
    if result["prefill"]:
        tables.append(_prefill(result["prefill"]))
    return tables


def _latency(rows: list[dict[str, Any]], point: tuple[int, int]) -> rich.table.Table:
    table = _table(f"decode step, batch {point[0]}, {point[1]} slots")
    estimated = [f"{x['compute']} + {x['calibration']}" for x in rows[0]["ledgers"]]
    left = ("model", "what it is")
    columns = (*left, "devices", "rows", "measured ms", "spread", "tokens/s", "/ baseline", "/ its slice")
    columns += ("roofline ms", "of roofline", *(f"estimated ms, {name}" for name in estimated))
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        measured, roof = row["measured"], row["roofline"]
        low, high = measured["quartiles_ms"]
        table.add_row(
            row["name"],
            row["role"].replace("_", " "),
            mesh_text(row["mesh"]),
            str(row["batch"]),
            f"{measured['median_ms']:.3f}",
            f"{100 * (high - low) / measured['median_ms']:.0f}%",
            f"{row['tokens_per_second']:.0f}",
            *(_ratio(row, role) for role in ("baseline", "baseline_slice")),
            f"{roof['floor_ms']:.3f} ({roof['bound']})",
            f"{100 * roof['share']:.0f}%",
            *(f"{ledger['step_ms']:.3f}" for ledger in row["ledgers"]),
        )
    peaks = rows[0]["roofline"]["peaks"]
    table.caption = (
        f"spread: the middle half of the samples; roofline from {peaks['source']} peaks "
        f"({peaks['bandwidth'] / 1e9:.0f} GB/s, {peaks['flops'] / 1e9:.0f} GFLOP/s a device for the first row)"
    )
    return table


def _splits(splits: list[dict[str, Any]]) -> rich.table.Table:
    table = _table("where the time of a decode step goes: ms with a part minus ms without it, all measured")
    table.add_column("part")
    for split in splits:
        table.add_column(f"{split['name']} on {mesh_text(split['mesh'])}", justify="right")
    names = list(dict.fromkeys(part["part"] for split in splits for part in split["parts"]))
    for name in names:
        found = [next((p for p in split["parts"] if p["part"] == name), None) for split in splits]
        table.add_row(name, *("-" if part is None else f"{part['median_ms']:.3f}" for part in found))
    table.add_section()
    table.add_row("remainder (overlap, noise)", *(f"{split['remainder_ms']:.3f}" for split in splits))
    table.add_row("whole step", *(f"{split['whole']['median_ms']:.3f}" for split in splits))
    table.add_row("sum of the parts", *(f"{100 * split['share_explained']:.0f}%" for split in splits))
    messages = [split["collectives"] for split in splits]
    table.add_row(
        "of which messages between devices", *("-" if m is None else f"{m['median_ms']:.3f}" for m in messages)
    )
    return table


def _prefill(rows: list[dict[str, Any]]) -> rich.table.Table:
    table = _table(f"prefill of {rows[0]['length']} tokens")
    left = ("model", "form")
    for column in (*left, "devices", "rows", "measured ms", "spread", "tokens/s", "roofline ms", "of roofline"):
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        measured, roof = row["measured"], row["roofline"]
        low, high = measured["quartiles_ms"]
        table.add_row(
            row["name"],
            row["form"],
            mesh_text(row["mesh"]),
            str(row["batch"]),
            f"{measured['median_ms']:.1f}",
            f"{100 * (high - low) / measured['median_ms']:.0f}%",
            f"{row['tokens_per_second']:.0f}",
            f"{roof['floor_ms']:.1f} ({roof['bound']})",
            f"{100 * roof['share']:.0f}%",
        )
    return table


def mesh_text(mesh: dict[str, int]) -> str:
    """Return a mesh as slices x devices, e.g. "2x8"; copies in front, e.g. "2 of 1x8"."""
    devices = f"{mesh['stack']}x{mesh['tensor']}"
    return devices if mesh["data"] == 1 else f"{mesh['data']} of {devices}"


def _ratio(row: dict[str, Any], role: str) -> str:
    return f"{row['ratios'][role]:.2f}" if role in row["ratios"] else "-"


def _table(title: str) -> rich.table.Table:
    return rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
