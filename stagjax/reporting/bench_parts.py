"""The picture of a decode step's parts."""

import pathlib
from collections.abc import Sequence
from typing import Any

from stagjax.reporting.bench_rows import Row, label, number, percent, quartiles
from stagjax.reporting.plot_style import Picture, draw_legend, name_lanes
from stagjax.reporting.plots import PART_COLOURS, open_figure

SPLIT_COLOURS = {
    "self-attention": PART_COLOURS["self_attention"],
    "cross-attention": PART_COLOURS["cross_attention"],
    "MLP": PART_COLOURS["mlp"],
    "handoff": PART_COLOURS["handoff"],
    "combination and logits": PART_COLOURS["logits"],
    "sampling": PART_COLOURS["sampling"],
    "host": PART_COLOURS["combination"],
    "embedding, norms, loop": PART_COLOURS["embedding"],
}


def draw_components(splits: Sequence[Row], digits: int, path: pathlib.Path) -> Picture:
    """Draw the parts of steps, stacked; what is below zero goes to the left of it."""
    with open_figure(path, width=9.5, height=2.3 + 0.95 * len(splits)) as (figure, plt):
        axes = figure.subplots()
        most = max(sum(max(ms, 0) for _, ms in _segments(split)) for split in splits)
        least = min(sum(min(ms, 0) for _, ms in _segments(split)) for split in splits)
        for y, split in enumerate(splits):
            _stack(axes, y, split, digits, room=0.055 * (most - least))
        point = f"batch {splits[0]['batch']}, {splits[0]['context']} slots"
        axes.set_title(f"where a decode step's time goes, {point}", loc="left", fontsize=10)
        axes.axvline(0, color="black", lw=0.8)
        name_lanes(axes, [label(split) for split in splits], "ms a token, measured")
        axes.set_xlim(1.04 * least, 1.04 * most)
        axes.set_ylim(len(splits) - 0.4, -0.6)
        names = list(dict.fromkeys(part["part"] for split in splits for part in split["parts"]))
        handles = [plt.Rectangle((0, 0), 1, 1, color=_part_colour(name)) for name in names]
        handles.append(plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#5C5C5C", hatch="////"))
        handles.append(plt.Line2D([], [], color="black", lw=2.5))
        draw_legend(figure, handles, [*names, "remainder", "whole step"], columns=4)
    caption = (
        "Measured: a step with a part minus a step without it. The black mark is the whole step, the hatched part what "
        "the parts do not account for (overlap, noise)."
    )
    if least < 0:
        caption += (
            " Left of zero is what came out negative: a step without the part was no faster, as happens with small or "
            "overlapping parts; the bar minus what is left of zero is the whole step."
        )
    if any(split["collectives"] for split in splits):
        caption += (
            " Grey below a bar: what the step saves without messages between devices; the parts above contain it."
        )
    return Picture(path, "Where the time of a step goes", caption)


def _segments(split: Row) -> list[tuple[str, float]]:
    return [(part["part"], part["median_ms"]) for part in split["parts"]] + [("remainder", split["remainder_ms"])]


def _stack(axes: Any, y: int, split: Row, digits: int, room: float) -> None:
    """Draw one split; parts at least `room` wide say how long they take."""
    ends = [0.0, 0.0]
    for name, ms in _segments(split):
        hatched = {"facecolor": "white", "edgecolor": "#5C5C5C", "hatch": "////", "linewidth": 0.6}
        solid = {"facecolor": _part_colour(name), "edgecolor": "white", "linewidth": 0.8}
        side = ms < 0
        axes.barh(y, ms, left=ends[side], height=0.5, **(hatched if name == "remainder" else solid))
        if abs(ms) >= room:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if name == "remainder" else None
            colour = "black" if name == "remainder" or _is_light(_part_colour(name)) else "white"
            text = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colour, "bbox": box}
            axes.text(ends[side] + ms / 2, y, number(ms, digits), **text)
        ends[side] += ms
    whole = split["whole"]["median_ms"]
    for side in (-1, 1):
        # Outside of the bar, whose figures it would cross out.
        axes.plot([whole, whole], [y + side * 0.25, y + side * 0.33], color="black", lw=2.5, solid_capstyle="butt")
    text = f"whole step {number(whole, digits)} ({quartiles(split['whole'], digits)})"
    axes.text(max(whole, 0), y - 0.36, text, ha="right", va="bottom", fontsize=8.5)
    if split["collectives"]:
        messages = split["collectives"]["median_ms"]
        axes.barh(y + 0.36, messages, height=0.09, color=PART_COLOURS["collective"])
        text = f" messages {number(messages, digits)}, {percent(messages / whole)} of the step"
        axes.text(max(messages, 0), y + 0.36, text, ha="left", va="center", fontsize=8)


def _part_colour(name: str) -> str:
    return SPLIT_COLOURS.get(name, PART_COLOURS["other"])


def _is_light(colour: str) -> bool:
    red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 150
