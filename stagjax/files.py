"""Small files, written whole or not at all: under a temporary name, then renamed."""

import json
import os
import pathlib
from typing import Any

from stagjax.errors import UserError


def directory(text: str | os.PathLike[str]) -> Any:
    """Return the path of a directory as the user wrote it: a `pathlib.Path`, or an `epath.Path` in a bucket (gs://)."""
    if not os.fspath(text).startswith("gs://"):
        return pathlib.Path(text)
    # Otherwise etils reads buckets by TensorFlow where that is installed, and loads it: 8 s and 650 MB.
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    return epath.Path(text)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Replace the file at `path` by one that holds `text`; raise `OSError` and leave it as it was if that fails."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_result(path: pathlib.Path, text: str) -> None:
    """Write a file that the user asked for, with its directory; raise `UserError` where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a result as indented JSON; raise `UserError` where that fails."""
    write_result(path, json.dumps(value, indent=2) + "\n")
