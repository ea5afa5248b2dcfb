"""Latencies of a benchmark's result, joined with the models that have the measured shape; names play no part."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stagjax.config import ModelConfig
from stagjax.errors import UserError
from stagjax.files import read_json

RESULTS = "results.json"

KINDS = (("decode", "rows", "context"), ("prefill", "prefill", "length"))
"""What is timed, with its rows in a result and their field of positions."""


def read_bench(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return a result of `stagjax bench decode`, a file or a directory with results.json; None if it is not there.

    Raises:
      UserError: it cannot be read, or is something else.
    """
    file = pathlib.Path(path, RESULTS) if pathlib.Path(path).is_dir() else pathlib.Path(path)
    if not file.exists():
        return None
    result = read_json(file, "name a results.json of stagjax bench decode", _checked)
    if result.get("benchmark") != "decode":
        raise UserError(f"bench: {file} is no result of stagjax bench decode; name one")
    return result | {"path": str(file)}


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result all of whose rows can be joined; raise what Python does where one lacks something."""
    if result.get("benchmark") != "decode":
        return result
    for kind, key, length in KINDS:
        for row in result.get(key, []):
            _latency(kind, row, row[length], result | {"path": ""})
            _shape(row["model"]), row["decoding"]
    return result


def join(model: ModelConfig, decoding: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the latencies of a model: {"decode": ..., "prefill": ..., "others": [...]}, each None or empty if unknown.

    A row of a result belongs to a model if their shapes are equal in every field but `max_length`, which a benchmark
    sets to its caches, and their decoding modes are equal. Of several, the one with the fewest rows in a batch, then
    the fewest slots, then the most devices, then the least time is taken; the rest are `others`.
    """
    wanted = _shape(dataclasses.asdict(model))
    found: dict[str, Any] = {"decode": None, "prefill": None, "others": []}
    for kind, key, length in KINDS:
        matching = [
            _latency(kind, row, row[length], result)
            for result in results
            for row in result.get(key, [])
            if _shape(row["model"]) == wanted and row["decoding"] == decoding
        ]
        matching.sort(key=lambda one: (one["batch"], one["length"], -one["devices"], one["ms"]))
        found[kind] = matching[0] if matching else None
        found["others"] += matching[1:]
    return found


def without_latencies(
    results: Mapping[str, Mapping[str, Any] | None], joined: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a note for each result (by its path in the sweep) that is not there, or that no row has a latency of."""
    used = {
        one["source"] for of_row in joined for one in (of_row["decode"], of_row["prefill"], *of_row["others"]) if one
    }
    return [
        f"no latencies of bench {path}: "
        + ("no model here has a shape and decoding mode that it measured" if result else "it is not there")
        + f"; make it by stagjax bench decode --config=FILE:VARIANT of such a model --output={path}"
        for path, result in results.items()
        if result is None or result["path"] not in used
    ]


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "max_length"}


def _latency(kind: str, row: Mapping[str, Any], length: int, result: Mapping[str, Any]) -> dict[str, Any]:
    machine = result.get("machine", {})
    return {
        "kind": kind,
        "ms": row["measured"]["median_ms"],
        "quartiles_ms": row["measured"]["quartiles_ms"],
        "batch": row["batch"],
        "length": length,
        "mesh": row["mesh"],
        "devices": row["devices"],
        "form": row.get("form", ""),
        "device": machine.get("device", ""),
        "source": result["path"],
    }
