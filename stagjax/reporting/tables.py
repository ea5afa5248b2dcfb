"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.table


def costs_table(title: str, figures: dict[str, Any]) -> rich.table.Table:
    """Return the table of `stagjax info`."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
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


def _section(table: rich.table.Table, title: str, rows: dict[str, str]) -> None:
    table.add_row(f"[bold]{title}[/bold]", "")
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
