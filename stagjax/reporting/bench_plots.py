"""Pictures of measurements: bars and lines are measured, dashes are roofline floors."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from stagjax.reporting.bench_parts import draw_components
from stagjax.reporting.bench_rows import (
    Point,
    Row,
    at,
    decode_decimals,
    label,
    number,
    points,
    prefill_decimals,
    roofline_warning,
    split_decimals,
)
from stagjax.reporting.bench_tables import train_mesh_text
from stagjax.reporting.plot_style import (
    FLOOR,
    KINDS,
    MARKERS,
    SERIES,
    Picture,
    draw_legend,
    kind_of,
    name_lanes,
    unmarked,
)
from stagjax.reporting.plots import open_figure


def draw_pictures(result: dict[str, Any], output: pathlib.Path) -> list[Picture]:
    """Write the pictures of a result into `output`; those for which it has no data are left out."""
    if result["benchmark"] == "train":
        return [draw_throughput(result["rows"], output / "throughput.png")]
    rows = result["rows"]
    first = at(rows, points(rows)[0])
    pictures = [draw_comparison(first, decode_decimals(result), output / "comparison.png")]
    if len(points(rows)) > 1:
        pictures.append(draw_latency(rows, output / "latency.png"))
    if result["splits"]:
        pictures.append(draw_components(result["splits"], split_decimals(result), output / "components.png"))
    pictures.append(draw_roofline(rows, output / "roofline.png"))
    if result["prefill"]:
        pictures.append(draw_prefill(result["prefill"], prefill_decimals(result), output / "prefill.png"))
    return pictures


def draw_comparison(rows: Sequence[Row], digits: int, path: pathlib.Path) -> Picture:
    """Draw the steps of one point as bars."""
    point = points(rows)[0]
    _bars(rows, [label(row) for row in rows], digits, f"a decode step, {point}: ms, measured", path)
    caption = (
        f"Measured time of a decode step at {point}. Whiskers: the middle half of the samples. Dashes: its "
        "roofline floor, calculated. Bars with more rows decode more tokens in that time."
    )
    return Picture(path, "Side by side", caption)


def draw_prefill(rows: Sequence[Row], digits: int, path: pathlib.Path) -> Picture:
    """Draw prefills as bars."""
    names = [f"{label(row)}, {row['form']}" for row in rows]
    title = f"prefill of {rows[0]['length']} tokens, batch {rows[0]['batch']}: ms, measured"
    _bars(rows, names, digits, title, path)
    caption = "Measured time of a prefill. Whiskers: the middle half of the samples. Dashes: roofline floors."
    return Picture(path, "Prefill", caption)


def draw_throughput(rows: Sequence[Row], path: pathlib.Path) -> Picture:
    """Draw the tokens a second of training steps as bars; a step's slower quartile is the left whisker."""
    rates = [row["tokens_per_second"] for row in rows]
    with open_figure(path, width=9, height=1.4 + 0.42 * len(rows)) as (figure, _):
        axes = figure.subplots()
        axes.barh(range(len(rows)), rates, height=0.62, color=SERIES[0])
        for y, (row, rate) in enumerate(zip(rows, rates, strict=True)):
            tokens = rate * row["measured"]["median_ms"]
            low, high = (tokens / ms for ms in reversed(row["measured"]["quartiles_ms"]))
            axes.plot([low, high], [y, y], color="black", lw=1.2)
            axes.annotate(f"{rate:.0f}", (max(high, rate), y), (6, 0), textcoords="offset points", va="center")
        names = [f"{row['name']} on {train_mesh_text(row)}" for row in rows]
        name_lanes(axes, names, "tokens a second, measured")
        axes.set_xlim(0, 1.16 * max(rates))
    return Picture(path, "Training", "Measured tokens a second. Whiskers: the middle half of the samples.")


def _bars(rows: Sequence[Row], names: Sequence[str], digits: int, title: str, path: pathlib.Path) -> None:
    """Draw measured times as horizontal bars with quartiles and floors."""
    with open_figure(path, width=9, height=1.7 + 0.42 * len(rows)) as (figure, plt):
        axes, most = figure.subplots(), 0.0
        for y, row in enumerate(rows):
            median, (low, high) = row["measured"]["median_ms"], row["measured"]["quartiles_ms"]
            floor, most = row["roofline"]["floor_ms"], max(most, high, row["roofline"]["floor_ms"])
            axes.barh(y, median, height=0.62, color=KINDS[kind_of(row)])
            axes.plot([low, high], [y, y], color="black", lw=1.2)
            for end in (low, high):
                axes.plot([end, end], [y - 0.12, y + 0.12], color="black", lw=1.2)
            axes.plot([floor, floor], [y - 0.38, y + 0.38], **FLOOR)
            right = max(high, floor)
            axes.annotate(
                number(median, digits), (right, y), (6, 0), textcoords="offset points", va="center", fontsize=9
            )
        name_lanes(axes, names, "ms")
        axes.set_xlim(0, 1.12 * most)
        axes.set_title(title, loc="left", fontsize=10)
        kinds = [kind for kind in KINDS if any(kind_of(row) == kind for row in rows)]
        handles = [plt.Rectangle((0, 0), 1, 1, color=KINDS[kind]) for kind in kinds] + [plt.Line2D([], [], **FLOOR)]
        draw_legend(figure, handles, [*kinds, "roofline"])


def draw_latency(rows: Sequence[Row], path: pathlib.Path) -> Picture:
    """Draw steps over contexts, a panel a batch; over batches where there is but one context."""
    contexts, batches = ({row[field] for row in rows} for field in ("context", "batch_asked"))
    over, panel = ("context", "batch_asked") if len(contexts) > 1 else ("batch_asked", "context")
    panels = sorted(batches if over == "context" else contexts)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{label(row)}" if row["batch"] == row["batch_asked"] else "", []).append(row)
    # What was measured at the first point only makes no line.
    lines = {name: found for name, found in lines.items() if name and len(found) > 1}
    columns = min(len(panels), 2)
    height = 1.3 + 0.2 * len(lines) + 3.1 * math.ceil(len(panels) / columns)
    with open_figure(path, width=9.5 if columns > 1 else 7.5, height=height) as (figure, plt):
        grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        styles = {name: (SERIES[n % len(SERIES)], MARKERS[n % 7]) for n, name in enumerate(lines)}
        for axes, value in zip(grid.flat, panels, strict=False):
            for place, (name, found) in enumerate(lines.items()):
                apart = 2 ** (0.025 * (place - (len(lines) - 1) / 2))
                _line(axes, [row for row in found if row[panel] == value], over, apart, *styles[name])
            title = f"batch {value}" if over == "context" else f"{value} slots"
            _sweep_axes(axes, plt, sorted(contexts if over == "context" else batches), over, title)
        handles = [plt.Line2D([], [], color=c, marker=m, ms=5, label=name) for name, (c, m) in styles.items()]
        handles.append(plt.Line2D([], [], **FLOOR | {"color": "#5C5C5C"}, label="roofline of the same colour"))
        draw_legend(figure, handles, [handle.get_label() for handle in handles], columns=2)
    caption = (
        f"Measured time of a decode step over the {'context' if over == 'context' else 'batch'}, with the middle half "
        "of the samples; models are set slightly apart. Dashes: roofline floors, calculated. Every panel has its own "
        "scale, from zero."
    )
    return Picture(path, "Over contexts and batches" if len(panels) > 1 else f"Over the {over.split('_')[0]}", caption)


def _line(axes: Any, found: Sequence[Row], over: str, apart: float, colour: str, marker: str) -> None:
    """Draw one model's points, set `apart` from those of others so that no whisker hides another."""
    found = sorted(found, key=lambda row: row[over])
    x = [apart * row[over] for row in found]
    y = [row["measured"]["median_ms"] for row in found]
    low = [median - row["measured"]["quartiles_ms"][0] for median, row in zip(y, found, strict=True)]
    high = [row["measured"]["quartiles_ms"][1] - median for median, row in zip(y, found, strict=True)]
    axes.errorbar(x, y, yerr=[low, high], color=colour, marker=marker, ms=5, lw=1.8, capsize=3, elinewidth=1)
    axes.plot(x, [row["roofline"]["floor_ms"] for row in found], **FLOOR | {"color": colour, "linewidth": 1.1})


def _sweep_axes(axes: Any, plt: Any, values: Sequence[int], over: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(plt.NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, slots" if over == "context" else "batch, rows")
    axes.set_ylabel("ms a step, measured")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_roofline(rows: Sequence[Row], path: pathlib.Path) -> Picture:
    """Draw measured steps against their floors; the first point's are named."""
    every = points(rows)
    with open_figure(path, width=9.5, height=5.4) as (figure, plt):
        axes = figure.subplots()
        floors = [row["roofline"]["floor_ms"] for row in rows]
        times = floors + [row["measured"]["median_ms"] for row in rows]
        least, right, most = 0.6 * min(times), 1.7 * max(floors), 1.7 * max(times)
        axes.plot([least, most], [least, most], color="black", lw=1.2)
        axes.plot([least, most], [least / 0.6, most / 0.6], **FLOOR)
        for row in rows:
            marker = MARKERS[every.index(Point(row["batch_asked"], row["context"])) % 7]
            x, y = row["roofline"]["floor_ms"], row["measured"]["median_ms"]
            axes.plot(x, y, marker=marker, color=KINDS[kind_of(row)], mec="black", mew=0.6, ms=7, ls="")
        axes.set_title("decode steps: measured against the least that is possible", loc="left", fontsize=10)
        axes.set(xscale="log", yscale="log", xlim=(0.6 * min(floors), right), ylim=(least, most))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(plt.NullLocator())
        axes.set_xlabel("roofline floor, ms, calculated")
        axes.set_ylabel("ms a step, measured")
        axes.grid(alpha=0.25)
        _name_at_the_side(axes, at(rows, every[0]))
        kinds = [kind for kind in KINDS if any(kind_of(row) == kind for row in rows)]
        handles = [plt.Rectangle((0, 0), 1, 1, color=KINDS[kind]) for kind in kinds]
        handles += [plt.Line2D([], [], ls="", marker=MARKERS[n % 7], color="#5C5C5C") for n in range(len(every))]
        handles += [plt.Line2D([], [], color="black", lw=1.2), plt.Line2D([], [], **FLOOR)]
        draw_legend(figure, handles, [*kinds, *map(str, every), "at its roofline", "60% of it"], columns=3)
    caption = (
        "Every decode step against the least time its bytes and FLOPs allow: on the line it could not be faster, on "
        f"the dashes it reaches 60%. Named are the steps at {every[0]}."
    )
    caption = " ".join(filter(None, [caption, roofline_warning(rows)]))
    return Picture(path, "Against the roofline", caption)


def _name_at_the_side(axes: Any, rows: Sequence[Row]) -> None:
    """Name points in a column right of the axes, in the order of their heights, so that no two names overlap."""
    ordered = sorted(rows, key=lambda row: row["measured"]["median_ms"])
    step = min(0.065, 0.98 / len(ordered))
    centre = axes.transAxes.inverted().transform(
        axes.transData.transform([(1, row["measured"]["median_ms"]) for row in ordered])
    )[:, 1]
    begin = min(max(centre.mean() - step * (len(ordered) - 1) / 2, 0.01), 0.99 - step * (len(ordered) - 1))
    for place, row in enumerate(ordered):
        axes.annotate(
            unmarked(label(row)),
            xy=(row["roofline"]["floor_ms"], row["measured"]["median_ms"]),
            xytext=(1.02, begin + place * step),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": "#9aa3ad",
                "lw": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
