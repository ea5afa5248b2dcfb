"""Result files: written whole or not at all."""

import json
import os
import pathlib
from typing import Any

from stagjax.errors import UserError


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write `value` as indented JSON; raise `UserError` where the path cannot be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it; raise `UserError` where that fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error
