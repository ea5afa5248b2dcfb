"""Pictures: loss curves, and who works on which token when."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stagjax.config import ModelConfig
from stagjax.errors import UserError
from stagjax.files import writing

COLOURS = ("#3b6fb6", "#d1762b", "#3c9d6b", "#9a5fb0", "#b5443f", "#6b7280")


class Work(NamedTuple):
    """One stack's work on one token; times are in layers run one after the other."""

    stack: int
    token: int
    start: int
    end: int


def require_matplotlib() -> None:
    """Raise `UserError` if pictures cannot be drawn; ask before the work that ends in one."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("pictures need matplotlib; install it with: pip install 'stagjax[plots]'")


def schedule(config: ModelConfig, tokens: int) -> list[Work]:
    """Return when each stack works on each of `tokens` tokens while decoding, each stack on devices of its own.

    With a lag of 1 or more all stacks of a step run at once; without staggering (lag 0) each waits for the one below.
    """
    L, P = config.layers_per_stack, config.num_stacks
    work = []
    for token in range(tokens):
        for s in range(P):
            start = (token * P + s) * L if config.lag == 0 else token * L
            work.append(Work(s, token, start, start + L))
    return work


def plot_schedule(models: Mapping[str, ModelConfig], path: pathlib.Path, tokens: int = 4) -> None:
    """Draw the schedules of some models above one time axis, with the handoffs between their stacks."""
    height = 1.0 + sum(0.55 * model.num_stacks + 0.75 for model in models.values())
    with open_figure(path, width=9.5, height=height) as (figure, plt):
        heights = [model.num_stacks + 0.6 for model in models.values()]
        all_axes = figure.subplots(len(models), 1, sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for (name, model), axes in zip(models.items(), all_axes[:, 0], strict=True):
            _draw_lanes(axes, model, tokens)
            layers = model.num_stacks * model.layers_per_stack if model.lag == 0 else model.layers_per_stack
            axes.set_title(f"{name}: a token every {layers} layers", loc="left", fontsize=10)
        axes.set_xlabel("time, in layers run one after the other")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))


def _draw_lanes(axes: Any, model: ModelConfig, tokens: int) -> None:
    from matplotlib import colors

    done = schedule(model, tokens)
    for work in done:
        colour = COLOURS[work.token % len(COLOURS)]
        axes.barh(work.stack, work.end - work.start, left=work.start, height=0.72, color=colour, edgecolor="white")
        dark = sum(colors.to_rgb(colour)) < 1.9
        axes.text(
            (work.start + work.end) / 2,
            work.stack,
            f"token {work.token}",
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if dark else "black",
        )
        reader = next((r for r in done if r.stack == work.stack + 1 and r.token == work.token + model.lag), None)
        if reader:
            axes.annotate(
                "",
                xy=(reader.start + 0.12, reader.stack - 0.3),
                xytext=(work.end - 0.12, work.stack + 0.3),
                arrowprops={"arrowstyle": "->", "color": "black", "lw": 1.1},
            )
    axes.set_yticks(range(model.num_stacks), [f"stack {s}" for s in range(model.num_stacks)])
    axes.set_ylim(model.num_stacks - 0.45, -0.55)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def plot_losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path) -> None:
    """Draw training (thin) and validation (bold) bits per byte of some runs over their steps.

    Args:
      runs: name to the run's metric lines, as `metrics.read_metrics` returns them.
      path: PNG to write.
    """
    with open_figure(path, width=7.5, height=4.6) as (figure, _):
        axes = figure.subplots()
        for (name, lines), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
            for metric, style in (
                ("train/bits_per_byte", {"lw": 0.8, "alpha": 0.45}),
                ("validation/bits_per_byte", {"lw": 2, "marker": "o", "ms": 4, "label": name}),
            ):
                points = [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, **style)
        validated = [
            line["validation/bits_per_byte"]
            for lines in runs.values()
            for line in lines
            if line.get("validation/bits_per_byte")
        ]
        if validated:
            # The first steps fall from 8 bits: cut there, or the differences at the end could not be seen.
            axes.set_ylim(bottom=0.85 * min(validated), top=1.25 * max(validated))
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte (thin: training, bold: validation)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


PART_COLOURS = {
    "self_attention": "#3b6fb6",
    "cross_attention": "#9a5fb0",
    "mlp": "#3c9d6b",
    "embedding": "#8c6d46",
    "combination": "#c9a227",
    "logits": "#d1762b",
    "sampling": "#b5443f",
    "handoff": "#111827",
    "other": "#d1d5db",
    "collective": "#6b7280",
}


def plot_timelines(plans: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw decode steps (`Plan.to_dict`) above one time axis: a lane a slice, parts in colour, collectives in grey."""
    lanes = [plan["mesh"]["stack"] for plan in plans]
    heights = [count + 0.7 for count in lanes]
    with open_figure(path, width=11, height=1.6 + sum(0.5 * height + 0.25 for height in heights)) as (figure, plt):
        all_axes = figure.subplots(len(plans), 1, sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for plan, axes in zip(plans, all_axes[:, 0], strict=True):
            _draw_timeline(axes, plan)
        all_axes[-1, 0].set_xlabel(
            "microseconds, estimated: the compiler's cycles, and 1 us a link for collectives (nothing was measured)"
        )
        parts = [part for part in PART_COLOURS if any(s["part"] == part for plan in plans for s in plan["timeline"])]
        handles = [plt.Rectangle((0, 0), 1, 1, color=PART_COLOURS[part]) for part in parts]
        names = [part.replace("_", " ") for part in parts]
        figure.legend(handles, names, loc="outside lower center", ncols=len(parts), frameon=False, fontsize=8)


def _draw_timeline(axes: Any, plan: Mapping[str, Any]) -> None:
    stack, end = plan["mesh"]["stack"], 1e3 * max(segment["end"] for segment in plan["timeline"])
    for s in range(stack):
        for part, colour in PART_COLOURS.items():
            spans = [
                (1e3 * segment["start"], 1e3 * (segment["end"] - segment["start"]))
                for segment in plan["timeline"]
                if segment["part"] == part
            ]
            if spans:
                axes.broken_barh(spans, (s - 0.36, 0.72), facecolors=colour, linewidth=0)
    if stack > 1:
        for s in range(stack - 1):
            axes.annotate(
                "",
                xy=(end * 1.012, s + 1),
                xytext=(end * 1.012, s),
                arrowprops={"arrowstyle": "->", "color": PART_COLOURS["handoff"], "lw": 1.4},
                annotation_clip=False,
            )
    request = plan["request"]
    axes.set_title(
        f"{request['name']}, batch {request['batch']}, {plan['chips']} chips: {end:.0f} us", loc="left", fontsize=10
    )
    axes.set_yticks(range(stack), [f"slice {s}" if stack > 1 else "all chips" for s in range(stack)])
    axes.set_ylim(stack - 0.5, -0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


@contextlib.contextmanager
def open_figure(path: pathlib.Path, width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """Yield a figure that is written to `path`, whole or not at all, when the block ends; raise as `files.writing`."""
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["text.parse_math"] = False  # A dollar in a name is a dollar.
    figure = plt.figure(figsize=(width, height), layout="constrained", dpi=130)
    try:
        yield figure, plt
        partial = path.with_name(path.name + ".partial")
        with writing(path):
            try:
                figure.savefig(partial, format="png")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    finally:
        plt.close(figure)
