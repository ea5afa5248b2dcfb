"""Tables of measurements: what was measured beside its floor, and what is estimated in tables of its own."""

from collections.abc import Callable
from typing import Any

import rich.table

from stagjax.reporting.bench_rows import (
    Point,
    Row,
    at,
    decode_decimals,
    estimate_name,
    label,
    mesh_text,
    number,
    of_role,
    percent,
    points,
    prefill_decimals,
    quartiles,
    ratio,
    roofline_warning,
    short_name,
    split_decimals,
    spread,
)
from stagjax.reporting.grid import MISSING, PAGE, WIDE, Column, Grid, terminal_table
from stagjax.reporting.tables import decimal, scaled

MEASURED, ROOFLINE, ESTIMATED, COMPUTED = "measured", "roofline", "estimated", "computed"


def bench_tables(result: dict[str, Any], width: int = 80) -> list[rich.table.Table]:
    """Return the tables of `stagjax bench` (the contents of results.json) for a terminal of `width` columns."""
    return [terminal_table(grid, width) for grid in bench_grids(result)]


def bench_grids(result: dict[str, Any]) -> list[Grid]:
    """Return all tables of a result, in the order in which they are read."""
    if result["benchmark"] == "train":
        return train_grids(result)
    grids = [*latency_grids(result), *estimate_grids(result)]
    grids += [split_grid(result)] if result["splits"] else []
    grids += [prefill_grid(result)] if result["prefill"] else []
    return [*grids, legend_grid(result)] if len(result["rows"]) > 1 else grids


def latency_grids(result: dict[str, Any]) -> list[Grid]:
    """Return the measured decode steps, a table a point."""
    return [_latency(result, point) for point in points(result["rows"])]


def estimate_grids(result: dict[str, Any]) -> list[Grid]:
    """Return the plan's estimates of the same steps, a table a point; none where there are none."""
    return [_estimates(result, p) for p in points(result["rows"]) if any(r["ledgers"] for r in at(result["rows"], p))]


def _latency(result: dict[str, Any], point: Point) -> Grid:
    rows, digits = at(result["rows"], point), decode_decimals(result)
    measured, roof = _getter(rows, "measured"), _getter(rows, "roofline")
    columns = [
        *_named(rows),
        Column("measured\nms", measured(lambda m: number(m["median_ms"], digits)), MEASURED),
        Column("\nquartiles", measured(lambda m: quartiles(m, digits)), MEASURED, least=WIDE),
        Column("\nspread", measured(spread), MEASURED),
        Column("\ntokens/s", [f"{row['tokens_per_second']:.0f}" for row in rows], MEASURED, least=WIDE),
        Column("over\nbaseline", [ratio(row, "baseline") for row in rows], MEASURED),
        Column("over its\nslice", [ratio(row, "baseline_slice") for row in rows], MEASURED),
        Column("roofline\nms", roof(lambda r: number(r["floor_ms"], digits)), ROOFLINE),
        Column("\nbound by", roof(lambda r: r["bound"]), ROOFLINE, least=WIDE),
        Column("\nof it", roof(lambda r: percent(r["share"])), ROOFLINE),
    ]
    return Grid(f"{_subject(rows)}: a decode step, {point}", columns, _latency_caption(rows))


def _latency_caption(rows: list[Row]) -> str:
    lines = []
    for head, role in (("over baseline", "baseline"), ("over its slice", "baseline_slice")):
        base = of_role(rows, role)
        # Where a slice is all devices, the two baselines are one.
        if base and role in rows[0]["ratios"]:
            lines.append(f"{head}: time over that of {label(base)}; below 1 is faster.")
    peaks = rows[0]["roofline"]["peaks"]
    bandwidth, flops = peaks["bandwidth"] / 1e9, peaks["flops"] / 1e9
    lines.append(
        f"Spread: the middle half of {rows[0]['measured']['samples']} samples. Roofline: from {peaks['source']} peaks "
        f"({bandwidth:.0f} GB/s and {flops:.0f} GFLOP/s a device in the first row); of it: floor over measured."
    )
    lines += filter(None, [roofline_warning(rows)])
    return "\n".join(lines)


def _estimates(result: dict[str, Any], point: Point) -> Grid:
    rows, digits = at(result["rows"], point), decode_decimals(result)
    columns = _named(rows)
    names = dict.fromkeys(estimate_name(ledger) for row in rows for ledger in row["ledgers"])
    for name in names:
        found = [next((x for x in row["ledgers"] if estimate_name(x) == name), None) for row in rows]
        compute, calibration = name.split(" + ", 1)
        for field, detail in (("step_ms", False), ("compute_ms", True), ("collectives_ms", True)):
            kind = field.removesuffix("_ms")
            head = f"{compute}\n+ {calibration}" if kind == "step" else f"\n{kind}"
            cells = [MISSING if x is None else number(x[field], digits) for x in found]
            columns.append(Column(head, cells, f"{ESTIMATED}: {name}", least=PAGE if detail else 0))
    caption = (
        "Estimated, not measured: ms of a step by what its computing is taken from (the compiler's cycles, or memory "
        "bandwidth) + what its collectives are."
    )
    return Grid(f"{_subject(rows)}: estimates of the same step, {point}", columns, caption)


def split_grid(result: dict[str, Any]) -> Grid:
    """Return the measured parts of decode steps, a column a split."""
    splits, digits = result["splits"], split_decimals(result)
    names = list(dict.fromkeys(part["part"] for split in splits for part in split["parts"]))
    feet = ["remainder (overlap, noise)", "whole step", "sum of the parts", "messages between devices"]
    columns = [Column("part", [*names, *feet], left=True)]
    for split in splits:
        parts = {part["part"]: part for part in split["parts"]}
        timings = [parts.get(name) for name in names]
        known = [None, split["whole"], None, split["collectives"]]
        middle = [number(split["remainder_ms"], digits), "", percent(split["share_explained"]), ""]
        time = lambda t: MISSING if t is None else number(t["median_ms"], digits)
        half = lambda t: MISSING if t is None else quartiles(t, digits)
        ms = [time(t) for t in timings] + [text or time(t) for text, t in zip(middle, known, strict=True)]
        spreads = [half(t) for t in (*timings, *known)]
        columns.append(Column(label(split).replace(" on ", "\non "), ms, f"measured, {label(split)}"))
        columns.append(Column("\nquartiles", spreads, f"measured, {label(split)}", least=WIDE))
    at_all = Point(splits[0]["batch"], splits[0]["context"])
    caption = (
        "A step with a part minus one without it; the whole step is measured anew with them. Below zero: what the part "
        "shares with others, or noise. Messages between devices, with waiting for each other, are within the parts."
    )
    return Grid(f"where a decode step's ms go, {at_all}, measured", columns, caption, feet=len(feet))


def prefill_grid(result: dict[str, Any]) -> Grid:
    """Return the measured prefills."""
    rows, digits = result["prefill"], prefill_decimals(result)
    measured, roof = _getter(rows, "measured"), _getter(rows, "roofline")
    columns = [
        *_named(rows),
        Column("form", [row["form"] for row in rows], left=True),
        Column("measured\nms", measured(lambda m: number(m["median_ms"], digits)), MEASURED),
        Column("\nquartiles", measured(lambda m: quartiles(m, digits)), MEASURED, least=WIDE),
        Column("\nspread", measured(spread), MEASURED),
        Column("\ntokens/s", [f"{row['tokens_per_second']:.0f}" for row in rows], MEASURED),
        Column("roofline\nms", roof(lambda r: number(r["floor_ms"], digits)), ROOFLINE),
        Column("\nbound by", roof(lambda r: r["bound"]), ROOFLINE, least=WIDE),
        Column("\nof it", roof(lambda r: percent(r["share"])), ROOFLINE),
    ]
    title = f"prefill of {rows[0]['length']} tokens, batch {rows[0]['batch']}"
    return Grid(title, columns, roofline_warning(rows) or "")


def memory_grid(result: dict[str, Any]) -> Grid:
    """Return what a device holds and reads at the first point; from shapes, not measured."""
    rows = at(result["rows"], points(result["rows"])[0])
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["bytes_per_device"]))
    held = lambda row, kind: decimal(row["bytes_per_device"][kind]) if kind in row["bytes_per_device"] else MISSING
    columns = [
        *_named(rows, full=True),
        Column("all parameters", [f"{row['parameters']:,}" for row in rows], COMPUTED),
        *(Column(f"{kind}, a device", [held(row, kind) for row in rows], COMPUTED) for kind in kinds),
        Column("read in a step, a device", [decimal(row["roofline"]["read_bytes"]) for row in rows], COMPUTED),
        Column("FLOPs of a step, a device", [scaled(row["roofline"]["flops"]) for row in rows], COMPUTED),
    ]
    return Grid(f"what a device holds and reads, {points(rows)[0]}", columns)


def legend_grid(result: dict[str, Any]) -> Grid:
    """Return what the comparators are that were measured."""
    rows = result["rows"]
    names: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["role"] in result["roles"]:
            found = names.setdefault(row["role"], {})
            if not found or row["batch"] == row["batch_asked"]:
                found[f"{short_name(row, _subject(rows))} on {mesh_text(row['mesh'])}"] = None
    columns = [
        Column("compared with", [" / ".join(found) for found in names.values()], left=True),
        Column("which is", [result["roles"][role] for role in names], left=True),
    ]
    return Grid("what is what (on: slices x devices of each)", columns)


def train_grids(result: dict[str, Any]) -> list[Grid]:
    """Return the measured training steps, and what they take by shape and compiler."""
    rows = result["rows"]
    measured = _getter(rows, "measured")
    named = [
        Column("model", [row["name"] for row in rows], left=True),
        Column("on", [train_mesh_text(row) for row in rows], left=True),
    ]
    held = lambda kind: [MISSING if r["memory"][kind] is None else decimal(r["memory"][kind]) for r in rows]
    speed = [
        Column("\nms a step", measured(lambda m: f"{m['median_ms']:.1f}"), MEASURED),
        Column("\nspread", measured(spread), MEASURED),
        Column("measured\ntokens/s", [f"{row['tokens_per_second']:.0f}" for row in rows], MEASURED),
        Column("over the\nfirst", [f"{row['ratio']:.2f}" for row in rows], MEASURED),
        Column("\nMFU", [MISSING if row["mfu"] is None else percent(row["mfu"]) for row in rows], MEASURED),
        Column("peak a\ndevice", held("peak_bytes_per_device"), MEASURED),
    ]
    needs = [
        Column("\nparameters", [scaled(row["parameters"]) for row in rows], COMPUTED),
        Column("\nFLOPs/token", [scaled(row["flops_per_token"]) for row in rows], COMPUTED),
        Column("over the\nfirst", [f"{row['flops_ratio']:.2f}" for row in rows], COMPUTED),
        Column("memory a\ndevice", held("compiled_bytes_per_device"), COMPUTED),
        Column("\nbubble", [MISSING if row["bubble"] is None else percent(row["bubble"]) for row in rows], COMPUTED),
    ]
    peaks = rows[0]["peaks"]
    batches = {f"{row['global_batch']} rows of {row['row_length']} tokens" for row in rows}
    return [
        Grid(
            f"training steps, {batches.pop() if len(batches) == 1 else 'batches of different sizes'}",
            named + speed,
            "Over the first: tokens/s, above 1 is faster. Spread: the middle half of the steps. MFU: of a "
            f"{peaks['source']} peak of {peaks['flops'] / 1e12:.3g} TFLOP/s a device.",
        ),
        Grid(
            "what a step takes, calculated",
            named + needs,
            "Memory: of the compiled step. Bubble: share of a pipelined step in which a slice is idle.",
        ),
    ]


def train_mesh_text(row: Row) -> str:
    """Return the axes of a mesh that are larger than one, e.g. "data 2, tensor 4"."""
    return ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1) or "1 device"


def _subject(rows: list[Row]) -> str:
    found = of_role(rows, "model")
    return found["name"] if found else rows[0]["name"]


def _named(rows: list[Row], full: bool = False) -> list[Column]:
    """Return the columns that tell rows apart."""
    names = [short_name(row, "" if full else _subject(rows)) for row in rows]
    return [Column("model", names, left=True), Column("on", [mesh_text(row["mesh"]) for row in rows], left=True)]


def _getter(rows: list[Row], field: str) -> Callable[[Callable[[dict[str, Any]], str]], list[str]]:
    return lambda text: [text(row[field]) for row in rows]
