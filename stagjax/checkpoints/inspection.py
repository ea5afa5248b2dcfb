"""What is in a workdir, a checkpoint or an export: read from its metadata, wherever it was saved."""

import math
import os
import pathlib
from typing import Any

from etils import epath

from stagjax import bucket
from stagjax.bucket import CHECKPOINTS
from stagjax.checkpoints import exported, stored
from stagjax.checkpoints.exported import shape_of
from stagjax.checkpoints.origin import read_metadata, readable, workdir_of
from stagjax.checkpoints.saving import content_key
from stagjax.checkpoints.stored import DamagedError

WHOLE, VERIFIED = "whole, arrays not read", "verified"


def inspect(path: pathlib.Path, checkpoint: str | int | None = None, verify: bool = False) -> dict[str, Any]:
    """Return everything about a model that its metadata say, as plain data.

    No array is read and no device of the saved mesh is needed, unless `verify` asks for all checksums.

    Args:
      path: a workdir, one checkpoint of it, or an export.
      checkpoint: which one of a workdir is described; None is the best, or the latest if no checkpoint was validated.
      verify: read the arrays, of an export all files, and compare checksums.

    Returns:
      "path", "kind", "checkpoints" (of a workdir: step, validation_loss, bytes, validity), and of the one described:
      "step", "validity", "metrics", "content_key", "config", "manifest", "parameters" (name, dtype, shape, count,
      bytes), "state_bytes" (of optimizer state and step) and "files" (bytes on disk by name).

    Raises:
      UserError: there is no model, or no such checkpoint.
      RunFailed: the metadata themselves are damaged; other damage is a "validity".
    """
    with readable(path):
        return _inspect(path, checkpoint, verify)


def _inspect(path: pathlib.Path, checkpoint: str | int | None, verify: bool) -> dict[str, Any]:
    metadata = read_metadata(path, checkpoint)
    place = bucket.absolute(path)
    kind, checkpoints = "export", []
    if not exported.is_export(path):
        directory = workdir_of(place) / CHECKPOINTS
        kind = "checkpoint" if place.parent == directory else "workdir"
        checkpoints = _checkpoints(directory) if kind == "workdir" else []
        place = directory / str(metadata["step"])
    arrays = metadata["arrays"]
    return {
        "path": str(path),
        "kind": kind,
        "checkpoints": checkpoints,
        "step": metadata["step"],
        "validity": _validity(place, kind, verify),
        "metrics": metadata["metrics"],
        "content_key": content_key(metadata),
        "config": metadata["config"],
        "manifest": metadata["manifest"],
        "parameters": [_parameter(name, text) for name, text in arrays.items() if name.startswith("params/")],
        "state_bytes": sum(_num_bytes(text) for name, text in arrays.items() if not name.startswith("params/")),
        "files": _files(place),
    }


def _checkpoints(directory: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((path for path in directory.iterdir() if path.name.isdecimal()), key=lambda p: int(p.name)):
        loss, validity = None, WHOLE
        try:
            loss = stored.check_shapes(epath.Path(path))["metrics"]["validation_loss"]
        except DamagedError as error:
            validity = f"damaged ({error})"
        size = sum(_files(path).values()) if path.is_dir() else 0
        rows.append({"step": int(path.name), "validation_loss": loss, "bytes": size, "validity": validity})
    return rows


def _validity(place: pathlib.Path, kind: str, verify: bool) -> str:
    """Return how much of the checkpoint or export at `place` is known to be as it was saved."""
    try:
        if kind != "export":
            (stored.verify if verify else stored.check_shapes)(epath.Path(place))
        elif verify:
            exported.check_files(place)
            exported.verify_arrays(place)
    except DamagedError as error:
        return f"damaged ({error})"
    return VERIFIED if verify else WHOLE


def _parameter(name: str, text: str) -> dict[str, Any]:
    shape = shape_of(text)
    return {
        "name": name.removeprefix("params/"),
        "dtype": shape.dtype.name,
        "shape": list(shape.shape),
        "count": math.prod(shape.shape),
        "bytes": _num_bytes(text),
    }


def _num_bytes(text: str) -> int:
    shape = shape_of(text)
    return math.prod(shape.shape) * shape.dtype.itemsize


def _files(directory: pathlib.Path) -> dict[str, int]:
    """Return bytes by name of the files below a directory, which may be in a bucket."""
    sizes = {}
    # Level by level: a path in a bucket refuses to list recursively. Links lead to files, or to nothing that counts.
    for entry in sorted(epath.Path(directory).iterdir()):
        if entry.is_dir():
            if bucket.is_bucket(entry) or not os.path.islink(entry):
                sizes |= {f"{entry.name}/{name}": size for name, size in _files(entry).items()}
        elif entry.exists():
            sizes[entry.name] = entry.stat().length
    return sizes
