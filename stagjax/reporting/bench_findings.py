"""What a result of `stagjax bench` says, in sentences made of its figures."""

from collections.abc import Iterator
from typing import Any

from stagjax.reporting.bench_rows import (
    Row,
    at,
    decode_decimals,
    full_name,
    is_plain,
    label,
    number,
    of_role,
    percent,
    points,
    prefill_decimals,
    roofline_warning,
    split_decimals,
)


def findings(result: dict[str, Any]) -> list[str]:
    """Return the findings, the most important one first; plain text."""
    if result["benchmark"] == "train":
        return list(_training(result["rows"]))
    rows = at(result["rows"], points(result["rows"])[0])
    model = of_role(rows, "model")
    if model is None:
        return []
    digits = decode_decimals(result)
    found = [*_steps(rows, model, digits), *_sweep(result["rows"])]
    found += [*_throughput(rows, model), *_other_forms(rows, model, digits)]
    for split in result["splits"]:
        found.append(_split(split, split_decimals(result)))
    return [*found, *_prefill(result["prefill"], prefill_decimals(result)), *_estimates(model, digits)]


def _steps(rows: list[Row], model: Row, digits: int) -> Iterator[str]:
    """Yield the model's step beside those it is compared with, then beside its floor."""
    roles = ("baseline_slice", "baseline", "wide_slice", "wide", "one_slice")
    against = [_against(model, other, digits) for role in roles if (other := of_role(rows, role))]
    step = f"{full_name(model)} on {_devices(model)}: {number(_median(model), digits)} ms a token"
    yield f"{step}, {against[0]}." if against else f"{step}."
    yield from (f"It takes {text}." for text in against[1:])
    roof = model["roofline"]
    yield (
        f"Measured at batch {model['batch']} and {model['context']} slots. The roofline floor of its step, bound by "
        f"{roof['bound']}, is {number(roof['floor_ms'], digits)} ms, {percent(roof['share'])} of what was measured."
    )
    if warning := roofline_warning(rows):
        yield warning


def _against(model: Row, other: Row, digits: int) -> str:
    ratio = _median(model) / _median(other)
    where = "the same devices" if other["devices"] == model["devices"] else _devices(other)
    if other["role"] == "one_slice":
        name = f"the same model, its stacks one after the other, on {where}"
    else:
        layers = other["model"]["layers_per_stack"]
        name = f"{full_name(other)}, a plain decoder of {layers} layers, on {where}"
    times = "of the time" if ratio < 1 else "times that"
    return f"{ratio:.2f} {times} of {name} ({number(_median(other), digits)} ms): {_verdict(model, other)}"


def _verdict(row: Row, other: Row) -> str:
    """Say whether a row is faster than another, and where the samples do not tell."""
    ratio = _median(row) / _median(other)
    low, high = row["measured"]["quartiles_ms"]
    other_low, other_high = other["measured"]["quartiles_ms"]
    if low <= other_high and other_low <= high:
        return "no clear difference, the middle halves of the samples overlap"
    if ratio < 1:
        return f"faster by {percent(1 - ratio)}"
    return f"slower by {percent(ratio - 1)}"


def _sweep(rows: list[Row]) -> Iterator[str]:
    models = [row for row in rows if row["role"] == "model"]
    for role, text in (("baseline_slice", "on one slice's devices"), ("baseline", "on all devices")):
        ratios = {
            point: row["ratios"][role]
            for point, row in zip(points(models), models, strict=True)
            if role in row["ratios"]
        }
        if len(ratios) > 1:
            least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
            yield (
                f"Over {len(ratios)} batches and contexts its time is {ratios[least]:.2f} ({least}) to "
                f"{ratios[most]:.2f} ({most}) of the baseline's {text}."
            )


def _throughput(rows: list[Row], model: Row) -> Iterator[str]:
    for role in ("baseline_rows", "shallow_rows"):
        other = of_role(rows, role)
        if other:
            ratio = model["tokens_per_second"] / other["tokens_per_second"]
            yield (
                f"In tokens a second it reaches {model['tokens_per_second']:.0f}, {ratio:.2f} of what {label(other)} "
                f"does ({other['tokens_per_second']:.0f})."
            )


def _other_forms(rows: list[Row], model: Row, digits: int) -> Iterator[str]:
    others = [row for row in rows if row["role"] in ("windows", "recurrent", "parallel_cross") and not is_plain(row)]
    if others:
        best = min(others, key=_median)
        yield (
            f"The fastest of its {len(others)} other forms is {label(best)}: {number(_median(best), digits)} ms, "
            f"{_median(best) / _median(model):.2f} of its time. Other forms are other models; how good they are is not "
            "measured here."
        )


def _split(split: Row, digits: int) -> str:
    whole = split["whole"]["median_ms"]
    largest = max(split["parts"], key=lambda part: part["median_ms"])
    text = (
        f"The largest part of a step of {label(split)} is {largest['part']}: {number(largest['median_ms'], digits)} of "
        f"{number(whole, digits)} ms. All parts together account for {percent(split['share_explained'])}"
    )
    if abs(1 - split["share_explained"]) > 0.2:
        text += ", so the parts are rough here"
    if split["collectives"]:
        messages = split["collectives"]["median_ms"]
        text += f"; messages between devices, with waiting for them, take {number(messages, digits)} ms of it"
        text += f" ({percent(messages / whole)})"
    return text + "."


def _prefill(rows: list[Row], digits: int) -> Iterator[str]:
    models = [row for row in rows if row["role"] == "model"]
    for row in rows:
        # The last form is the one that generation uses.
        if models and row is not models[-1]:
            model = models[-1]
            yield (
                f"Prefill of {label(model)}, {model['form']}, takes {number(_median(model), digits)} ms, "
                f"{_median(model) / _median(row):.2f} of the time of {label(row)}, {row['form']} "
                f"({number(_median(row), digits)} ms): {_verdict(model, row)}."
            )


def _estimates(model: Row, digits: int) -> Iterator[str]:
    if model["ledgers"]:
        steps = [ledger["step_ms"] for ledger in model["ledgers"]]
        yield (
            f"The plan's estimates of this step, for comparison, are {number(min(steps), digits)} to "
            f"{number(max(steps), digits)} ms. They are estimates, not measurements."
        )


def _training(rows: list[Row]) -> Iterator[str]:
    first = rows[0]
    yield f"{first['name']}: {first['tokens_per_second']:.0f} tokens a second on {first['devices']} device(s)."
    for row in rows[1:]:
        gain = row["ratio"] - 1
        word = "faster" if gain > 0 else "slower"
        yield (
            f"{row['name']}: {row['tokens_per_second']:.0f} tokens a second, {row['ratio']:.2f} times {first['name']}: "
            f"{word} by {percent(abs(gain))}."
        )


def _devices(row: Row) -> str:
    """Return where a row was measured, in words."""
    mesh = row["mesh"]
    slices = "one slice" if mesh["stack"] == 1 else f"{mesh['stack']} slices"
    each = " each" if mesh["stack"] > 1 else ""
    text = f"{slices} of {mesh['tensor']} device{'s' if mesh['tensor'] > 1 else ''}{each}"
    return text if mesh["data"] == 1 else f"{mesh['data']} copies of {text}"


def _median(row: Row) -> float:
    return row["measured"]["median_ms"]
