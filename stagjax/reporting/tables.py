"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.table

from stagjax.reporting.console import plain


def costs_table(title: str, figures: dict[str, Any]) -> rich.table.Table:
    """Return the table of `stagjax info`."""
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    counts = figures["parameters"]
    _section(
        table,
        "parameters",
        {
            "total": f"{scaled(counts['total'])}  ({counts['total']:,})",
            "one stack": scaled(counts["per_stack"]),
            "cross-attention": scaled(counts["cross_attention"]),
            "embeddings": scaled(counts["embeddings"]),
        },
    )
    _section(
        table,
        f"FLOPs per token (decoding at {figures['context']} slots)",
        {name.replace("_", " "): scaled(value) for name, value in figures["flops_per_token"].items()},
    )
    for name, title in (
        ("cache_bytes", f"KV cache of {figures['batch']} row(s) of {figures['context']} slots"),
        ("recurrent_cache_bytes", "the same in recurrent decoding"),
        ("training_bytes_estimate", "memory to train on one device (activations and logits are an estimate)"),
    ):
        if name in figures:
            _section(table, title, {part: binary(size) for part, size in figures[name].items()})
    return table


def demo_table(rows: Sequence[dict[str, Any]], steps: int) -> rich.table.Table:
    """Return the table of `stagjax demo`; a dash stands where a figure has no meaning."""
    table = rich.table.Table(
        title=f"{steps} steps on Python's standard library, measured on this machine", box=rich.box.SIMPLE_HEAD
    )
    for title in ("model", "parameters", "training tokens/s", "validation bits/byte", "decode ms/token"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            scaled(row["parameters"]),
            scaled(row["training_tokens_per_second"]) if "training_tokens_per_second" in row else "-",
            f"{row['validation_bits_per_byte']:.3f}",
            f"{row['decode_ms_per_token']:.2f}",
        )
    return table


def plan_tables(plan: dict[str, Any]) -> list[rich.table.Table]:
    """Return the tables of `stagjax plan` for one program (`Plan.to_dict`)."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1) or "one chip"
    idle = f", {plan['idle_chips']} idle" if plan["idle_chips"] else ""
    two = f" ({plan['devices']} devices)" if plan["devices"] != plan["chips"] else ""
    request = plan["request"]
    title = (
        f"{request['name']}: {request['program']}, batch {request['batch']}, {request['context']} tokens, on "
        f"{plan['chips']} chips{two} of {plan['topology']} ({mesh}{idle})"
    )
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    verdict = "fits" if plan["fits"] else "[bold red]does not fit[/bold red]"
    memory = {name: binary(size) for name, size in plan["memory"].items() if size}
    _section(table, f"memory of a device: {verdict} into {binary(plan['device_memory'])}", memory)
    if plan["advice"]:
        _section(table, "what would fit", {line: "" for line in plan["advice"]})
    if plan["compiler_cycles"] is None:
        return [table]
    _section(
        table,
        "work of a device, by the compiler",
        {
            "FLOPs": scaled(plan["flops"] or 0),
            "bytes moved": decimal(plan["hbm_bytes"] or 0),
            "cycles": f"{plan['compiler_cycles']:,}",
            **_kernels(plan),
            "compiled in": f"{plan['compile_seconds']:.1f} s",
        },
    )
    parts = {part.replace("_", " "): f"{ms:.3f} ms" for part, ms in plan["components_ms"].items()}
    _section(table, "the compiler's cycles by part, without collectives", parts)
    return [table, _collectives_table(plan), _training_cost_table(plan) if plan["training"] else _ledger_table(plan)]


def comparison_table(rows: Sequence[dict[str, Any]], topology: str) -> rich.table.Table:
    """Return the table of `stagjax plan --compare` for one batch (`compare.Row.to_dict`)."""
    title = (
        f"a decode step on {topology}, batch {rows[0]['batch']}: estimates in ms (ratios to the baseline of as many "
        "layers: on equal chips, those that the slices leave idle included / on the chips of one slice)"
    )
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("variant", "devices", "baselines'", "fits"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    for name in rows[0]["estimates"]:
        table.add_column(name, justify="right")
    for row in rows:
        stack, tensor = row["mesh"]["stack"], row["mesh"]["tensor"]
        devices = f"{stack}x{tensor}" if stack > 1 else str(tensor)
        cells = [_ratios(estimate) for estimate in row["estimates"].values()]
        against = "/".join(map(str, row["baseline_devices"]))
        table.add_row(plain(row["name"]), devices, against, "yes" if row["plan"]["fits"] else "no", *cells)
    return table


def training_plans_table(plans: Sequence[dict[str, Any]], topology: str) -> rich.table.Table:
    """Return the table of `stagjax plan --compare --program=train`: each run by its lowest and its highest estimate."""
    first = plans[0]
    title = (
        f"training on {topology}, {first['training_steps']:,} steps of {first['request']['batch']} x "
        f"{first['request']['context']} tokens: estimates, the compiler's, by every calibration that holds"
    )
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("variant", "params", "GiB a device", "step s", "MFU", "days", "chip-hours"):
        named = column == "variant"
        table.add_column(column, justify="left" if named else "right", no_wrap=not named, overflow="fold")
    for plan in plans:
        cells = [plain(plan["request"]["name"]), scaled(plan["parameters"]), f"{plan['bytes_per_device'] / 2**30:.2f}"]
        costs = [cost for cost in plan["training"] if cost["compute"] == "compiler"]
        if not costs:
            table.add_row(*cells, "does not fit")
            continue
        low, high = (choose(costs, key=lambda cost: cost["step_ms"]) for choose in (min, max))
        table.add_row(
            *cells,
            _between("{:.2f}", 1e-3 * low["step_ms"], 1e-3 * high["step_ms"]),
            _between("{:.0f}", 100 * high["mfu"], 100 * low["mfu"]) + "%",
            _between("{:.1f}", low["days"], high["days"]),
            _between("{:.1f}k", 1e-3 * low["chip_hours"], 1e-3 * high["chip_hours"]),
        )
    return table


def choices_table(rows: Sequence[tuple[str, dict[str, Any]]], topology: str) -> rich.table.Table:
    """Return the table of what each choice buys, one added to the ones before; the baseline gets the same form."""
    title = (
        f"what each choice buys on {topology}, batch {rows[0][1]['batch']}: estimates in ms (ratios to the baseline in "
        "the same form)"
    )
    table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD, title_justify="left")
    table.add_column("choice", no_wrap=True)
    for name in rows[0][1]["estimates"]:
        table.add_column(name, justify="right")
    for text, row in rows:
        table.add_row(text, *(_ratios(estimate) for estimate in row["estimates"].values()))
    return table


def scaled(number: float) -> str:
    """Return a number with a decimal suffix, e.g. 1.58B."""
    for suffix, size in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f}{suffix}"
    return f"{number:g}"


def binary(size: float) -> str:
    """Return bytes with a binary suffix, e.g. 1.5 GiB."""
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {suffix}"
        size /= 1024
    return f"{size:.4g} TiB"


def decimal(size: float) -> str:
    """Return bytes with a decimal suffix, e.g. 16 GB."""
    for suffix in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {suffix}"
        size /= 1000
    return f"{size:.3g} TB"


def _between(form: str, low: float, high: float) -> str:
    """Return a range, or one number where both ends look alike."""
    return "-".join(dict.fromkeys((form.format(low), form.format(high))))


def _ratios(estimate: dict[str, float]) -> str:
    return f"{estimate['step_ms']:.3f} ({estimate['ratio_equal_chips']:.2f} / {estimate['ratio_one_slice']:.2f})"


def _collectives_table(plan: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(title="collectives", box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("kind", "for", "axis", "count", "bytes each"):
        table.add_column(column, justify="right" if column in ("count", "bytes each") else "left")
    for row in plan["collectives"]:
        table.add_row(row["kind"], row["primitive"], row["axis"], str(row["count"]), f"{row['bytes']:,}")
    handoff = plan["handoff"]
    if handoff:
        waits = "is awaited in the step" if handoff["awaited_in_the_step"] else "nothing in the step waits for it"
        begins = "leaves when its stack is done" if handoff["needs_the_step"] else "leaves at the step's beginning"
        overlap = f", under way during {handoff['overlapped_ms']:.3f} ms of work" if handoff["overlapped_ms"] else ""
        table.caption = f"handoff over {handoff['hops']} links: {begins}, {waits}{overlap}"
    return table


def _ledger_table(plan: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(title="the step, estimated (not measured)", box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("computing by", "collectives by", "computing ms", "collectives ms", "step ms"):
        table.add_column(column, justify="right" if column.endswith("ms") else "left")
    for ledger in plan["ledgers"]:
        figures = (ledger["compute_ms"], ledger["collectives_ms"], ledger["step_ms"])
        table.add_row(ledger["compute"], ledger["calibration"], *(f"{ms:.3f}" for ms in figures))
    table.caption = _left_out(plan)
    return table


def _kernels(plan: dict[str, Any]) -> dict[str, str]:
    if plan["kernels_ms"]:
        return {"Pallas kernels, in none of these": f"{plan['kernels']}, some {plan['kernels_ms']:.0f} ms (estimate)"}
    return {"Pallas kernels, in no figure": str(plan["kernels"])} if plan["kernels"] else {}


def _training_cost_table(plan: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(
        title="a step and the whole run, estimated (not measured)", box=rich.box.SIMPLE_HEAD, title_justify="left"
    )
    columns = (
        "computing by",
        "collectives by",
        "computing ms",
        "collectives ms",
        "step ms",
        "MFU",
        "days",
        "chip-hours",
    )
    for column in columns:
        table.add_column(column, justify="left" if column.endswith("by") else "right")
    for ledger, cost in zip(plan["ledgers"], plan["training"], strict=True):
        table.add_row(
            ledger["compute"],
            ledger["calibration"],
            f"{ledger['compute_ms']:.0f}",
            f"{ledger['collectives_ms']:.0f}",
            f"{cost['step_ms']:.0f}",
            f"{cost['mfu']:.0%}",
            f"{cost['days']:.1f}",
            f"{cost['chip_hours']:,.0f}",
        )
    table.caption = _left_out(plan)
    return table


def _left_out(plan: dict[str, Any]) -> str | None:
    """Say which calibrations tell nothing of these chips."""
    lines = [
        f"{name!r} holds for {kinds} alone; --calibration={name}:FIELD=X sets constants of these chips"
        for name, kinds in plan["other_calibrations"].items()
    ]
    return "\n".join(lines) or None


def _section(table: rich.table.Table, title: str, rows: dict[str, str]) -> None:
    table.add_row(f"[bold]{title}[/bold]", "")
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
