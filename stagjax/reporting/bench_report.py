"""The page of a benchmark: what was found, how it was measured, every figure, in one file that opens offline."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from stagjax.errors import UserError
from stagjax.files import write_result
from stagjax.reporting.bench_findings import findings
from stagjax.reporting.bench_plots import draw_pictures
from stagjax.reporting.bench_rows import points
from stagjax.reporting.bench_tables import (
    estimate_grids,
    latency_grids,
    legend_grid,
    memory_grid,
    prefill_grid,
    split_grid,
    train_grids,
)
from stagjax.reporting.html import bullets, definitions, element, folded, page, picture, table

TERMS = (
    (
        "measured",
        "The median of the samples, taken on these devices. Programs are sampled in turns, so that what slows the "
        "machine down slows all of them. A sample is a call that draws several tokens as generation does, over these "
        "tokens. Quartiles: a quarter of the samples lie below the first, a quarter above the second.",
    ),
    (
        "spread",
        "From the first to the third quartile, in percent of the median. Two times that differ by less than their "
        "spreads are not told apart.",
    ),
    (
        "roofline",
        "Calculated: the bytes that a device must read over its memory's bandwidth, or its FLOPs over its peak, "
        "whichever takes longer. Peaks are published by the maker or, where they are not known, measured in the same "
        "run. Messages between devices, and starting operations, are not in it. Of it: floor over measured, 100% at "
        "best; more than that means that the peaks were measured too low.",
    ),
    (
        "estimated",
        "The plan's model of a TPU: computing by the compiler's cycles or by memory bandwidth, plus collectives by "
        "calibrations of their latency. No measurement is in it. Estimates are in tables of their own.",
    ),
    (
        "parts of a step",
        "Differences of two compiled programs, with the part and without it, in an otherwise whole step and in an "
        "otherwise empty one; the mean of both. The remainder is what they do not account for together.",
    ),
    (
        "on 2x4",
        "2 slices of 4 devices each. In a StagFormer every stack has a slice; a plain decoder has one, of all devices "
        "or of as many as one slice has.",
    ),
)
MORE_TERMS = (
    ("over the first", "Tokens a second over those of the first row; above 1 is faster."),
    ("MFU", "FLOPs of the model per second over the devices' peak."),
    ("computed", "By the compiler or from shapes, not measured."),
)


def write_report(result: dict[str, Any], output: pathlib.Path) -> None:
    """Draw the pictures of a result into `output` and write `report.html`, which holds them and all figures.

    Args:
      result: contents of results.json.
      output: directory; made where it is missing.

    Raises:
      UserError: the page cannot be written, or matplotlib is missing.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        pictures = {drawn.path.stem: drawn for drawn in draw_pictures(result, output)}
    except OSError as error:
        raise UserError(f"cannot write pictures to {output}: {error.strerror}; choose another directory") from error
    shown = {name: picture(drawn.path, drawn.title, drawn.caption) for name, drawn in pictures.items()}
    sections = _train(result, shown) if result["benchmark"] == "train" else _decode(result, shown)
    title = f"{_title(result)}: stagjax bench {result['benchmark']}"
    write_result(output / "report.html", page(title, [*_head(result, title), *sections, *_data(result)]))


def _title(result: dict[str, Any]) -> str:
    names = [row["name"] for row in result["rows"]]
    return ", ".join(dict.fromkeys(names)) if result["benchmark"] == "train" else names[0]


def _head(result: dict[str, Any], title: str) -> Iterator[str]:
    """Yield the findings, what to keep in mind with them, and the machine."""
    machine = result["machine"]
    yield element("h1", title)
    where = f"{machine['devices']} x {machine['device']} ({machine['platform']}), {machine['date']}"
    yield element("p", where, "soft")
    if not result.get("complete", True):
        yield element("p", "Unfinished: the run was cut off, and what is missing was not measured.", "note")
    yield bullets(findings(result), "findings")
    for note in result["notes"]:
        yield element("p", f"Note: {note}", "note")


def _decode(result: dict[str, Any], shown: dict[str, str]) -> Iterator[str]:
    """Yield the sections of decode steps and prefills."""
    yield element("h2", "Decode steps, measured")
    yield from (shown[name] for name in ("comparison", "latency", "roofline") if name in shown)
    yield from map(table, latency_grids(result))
    if result["splits"]:
        yield element("h2", "Where the time of a step goes, measured")
        yield shown["components"]
        yield table(split_grid(result))
    if result["prefill"]:
        yield element("h2", "Prefill, measured")
        yield shown["prefill"]
        yield table(prefill_grid(result))
    estimates = estimate_grids(result)
    if estimates:
        yield element("h2", "The plan's estimates, not measured")
        yield from map(table, estimates)
    yield from _how(result, TERMS)
    if len(result["rows"]) > 1:
        yield table(legend_grid(result))
    yield element("h2", "Memory, from shapes")
    yield table(memory_grid(result))
    yield from _machine(result)


def _train(result: dict[str, Any], shown: dict[str, str]) -> Iterator[str]:
    """Yield the sections of training steps."""
    yield element("h2", "Training steps, measured")
    yield shown["throughput"]
    for grid in train_grids(result):
        yield table(grid)
    yield from _how(result, (*TERMS[:2], *MORE_TERMS))
    yield from _machine(result)


def _how(result: dict[str, Any], terms: tuple[tuple[str, str], ...]) -> Iterator[str]:
    yield element("h2", "How to read this")
    used = result["benchmark"] == "train" or any(row["ledgers"] for row in result["rows"])
    yield definitions(entry for entry in terms if used or entry[0] != "estimated")


def _machine(result: dict[str, Any]) -> Iterator[str]:
    """Yield what it was measured on, and how."""
    yield element("h2", "Machine and settings")
    entries = {name.replace("_", " "): _text(value) for name, value in result["machine"].items()}
    entries["config"] = _text(result.get("config", ""))
    entries |= {name.replace("_", " "): _text(value) for name, value in result.get("settings", {}).items()}
    first = result["rows"][0]
    if result["benchmark"] == "decode":
        entries["dtype"] = first["model"]["compute_dtype"]
        entries["program form"] = (
            ", ".join(f"{name} {value}" for name, value in first["form"].items()) + f", {first['decoding']}"
        )
        entries["points"] = "; ".join(map(str, points(result["rows"])))
    yield definitions((name, text or "none") for name, text in entries.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _data(result: dict[str, Any]) -> Iterator[str]:
    yield element("h2", "Data")
    yield folded("results.json, from which all of this is made", json.dumps(result, indent=1))
