"""Pictures of a sweep: quality by task, by subset, against latency and over training; whiskers are standard errors."""

import pathlib
from collections.abc import Sequence
from typing import Any

from stagjax.data.shards import subset_label
from stagjax.reporting.evaluation_tables import estimate_of, row_name
from stagjax.reporting.plot_style import MARKERS, SERIES, Picture, draw_legend, name_lanes, unmarked
from stagjax.reporting.plots import open_figure

Results = dict[str, Any]
BITS = "bits_per_byte"
ERRORS = "Whiskers: one standard error."


def draw_pictures(results: Results, output: pathlib.Path) -> list[Picture]:
    """Write the pictures of a sweep into `output`; those for which there are no figures are left out."""
    found = (
        draw_tasks(results, output / "tasks.png"),
        draw_subsets(results, output / "subsets.png"),
        draw_trade(results, output / "trade.png"),
        draw_steps(results, output / "steps.png"),
    )
    return [picture for picture in found if picture is not None]


def draw_tasks(results: Results, path: pathlib.Path) -> Picture | None:
    """Draw each row's main metric of every task that was evaluated and has a best possible score, as a share of it."""
    rows = results["rows"]
    tasks = [t for t in results["tasks"] if t["perfect"] and any(_share(estimate_of(row, t), 1.0) for row in rows)]
    points = [[_share(estimate_of(row, task), task["perfect"]) for task in tasks] for row in rows]
    if not tasks:
        return None
    names = [f"{task['label']} ({task['metric']})" for task in tasks]
    _lanes(names, rows, points, "share of the best possible score", path)
    return Picture(path, "Accuracy by task", f"The main metric of each task, as a share of the best possible. {ERRORS}")


def draw_subsets(results: Results, path: pathlib.Path) -> Picture | None:
    """Draw bits per byte on the subsets of The Pile."""
    cells = [row["cells"].get("pile", {}) for row in results["rows"]]
    estimates = [cell.get("metrics", {}) for cell in cells]
    subsets = sorted({name.rpartition("/")[0] for found in estimates for name in found if name.endswith(f"/{BITS}")})
    if not subsets:
        return None
    points = [[_share(found.get(f"{subset}/{BITS}"), 1.0) for subset in subsets] for found in estimates]
    _lanes(list(map(subset_label, subsets)), results["rows"], points, "bits per byte (less is better)", path)
    return Picture(path, "The Pile by subset", f"Bits per byte of held-out documents by subset. {ERRORS}")


def draw_trade(results: Results, path: pathlib.Path) -> Picture | None:
    """Draw quality against the latency of a decode step."""
    kinds = (("average", "average of tasks (more is better)"), ("pile_perplexity", "Pile perplexity (less is better)"))
    rows = [row for row in results["rows"] if (row.get("latency") or {}).get("decode")]
    shown = [(key, axis) for key, axis in kinds if any(_share(row[key], 1.0) for row in rows)]
    if not shown:
        return None
    with open_figure(path, width=5.2 * len(shown) + 0.4, height=4.6) as (figure, _):
        handles = {}
        for (key, axis), axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
            for number, row in enumerate(rows):
                if point := _share(row[key], 1.0):
                    ms, (value, stderr) = row["latency"]["decode"]["ms"], point
                    style = _style(number) | {"capsize": 3, "linestyle": "none"}
                    handles[row_name(row)] = axes.errorbar([ms], [value], yerr=[stderr], **style)
            axes.set_xlabel("ms of a decode step, measured")
            axes.set_ylabel(axis)
            axes.margins(0.15)
            _bare(axes)
        draw_legend(figure, list(handles.values()), list(handles), columns=2)
    caption = (
        "Each model once: how good it is, and how long a decode step takes, as stagjax bench decode measured it for "
        f"its shape. Up (perplexity: down) and left is better. {ERRORS}"
    )
    return Picture(path, "Quality against decode latency", caption)


def draw_steps(results: Results, path: pathlib.Path) -> Picture | None:
    """Draw quality over the steps of training, for runs of which several checkpoints were evaluated."""
    series: dict[tuple[str, str, Any], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        series.setdefault((row["path"], row["decoding"], row["shots"]), []).append(row)
    series = {key: rows for key, rows in series.items() if len({row["step"] for row in rows}) > 1}
    pile = next((task for task in results["tasks"] if task["label"] == "pile"), None)
    measures = [("average of tasks (more is better)", lambda row: _share(row["average"], 1.0))]
    if pile:
        measures.append(("Pile, bits per byte (less is better)", lambda row: _share(estimate_of(row, pile, BITS), 1.0)))
    rows = [row for members in series.values() for row in members]
    measures = [(axis, measure) for axis, measure in measures if any(measure(row) for row in rows)]
    if not measures:
        return None
    with open_figure(path, width=5.2 * len(measures) + 0.4, height=4.4) as (figure, _):
        handles, names = {}, {}
        for (axis, measure), axes in zip(measures, figure.subplots(1, len(measures), squeeze=False)[0], strict=True):
            for number, (key, members) in enumerate(series.items()):
                points = [(row["step"], *found) for row in members if (found := measure(row))]
                if points:
                    steps, values, errors = zip(*sorted(points), strict=True)
                    handles[key] = axes.errorbar(steps, values, yerr=errors, **_style(number), capsize=3)
                    shots = "" if key[2] is None else f", {key[2]}-shot"
                    names[key] = f"{members[0]['name']}{'' if key[1] == 'parallel' else f', {key[1]}'}{shots}"
            axes.set_xlabel("step of training")
            axes.set_ylabel(axis)
            _bare(axes)
        draw_legend(figure, list(handles.values()), [names[key] for key in handles], columns=2)
    return Picture(path, "Quality over training", f"Checkpoints of the same run, joined. {ERRORS}")


def _lanes(
    names: Sequence[str],
    rows: Sequence[dict[str, Any]],
    points: Sequence[Sequence[tuple[float, float] | None]],
    axis: str,
    path: pathlib.Path,
) -> None:
    """Draw a lane a name, and in it a marker a row."""
    spread = 0.72 / max(len(rows), 1)
    with open_figure(path, width=8.5, height=1.6 + len(names) * max(0.34, 0.11 * len(rows)) + 0.1 * len(rows)) as (
        figure,
        _,
    ):
        axes = figure.subplots()
        handles = []
        for number, of_row in enumerate(points):
            offset = (number - (len(rows) - 1) / 2) * spread
            found = [(lane + offset, *point) for lane, point in enumerate(of_row) if point]
            lanes, values, errors = zip(*found, strict=True) if found else ((), (), ())
            handles.append(axes.errorbar(values, lanes, xerr=errors, **_style(number), capsize=2, linestyle="none"))
        for lane in range(1, len(names)):
            axes.axhline(lane - 0.5, color="black", alpha=0.12, linewidth=0.8)
        name_lanes(axes, names, unmarked(axis))
        draw_legend(figure, handles, [row_name(row) for row in rows], columns=2)


def _style(number: int) -> dict[str, Any]:
    # Colours and markers run out at different times, so that more than seven series can be told apart.
    colour = SERIES[number % len(SERIES)]
    marker = MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 5}


def _share(estimate: dict[str, Any] | None, perfect: float) -> tuple[float, float] | None:
    """Return (value, error), the error 0 where it is not known; None where there is no value."""
    if estimate is None or estimate["value"] is None:
        return None
    return estimate["value"] / perfect, (estimate["stderr"] or 0.0) / perfect


def _bare(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
