"""With which versions a run was trained, from which step on: `versions.json` in its workdir."""

import importlib.metadata
import json
import pathlib
from typing import Any

from stagjax.files import read_json, write_whole, writing

FILE = "versions.json"
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


def installed() -> dict[str, str]:
    """Return the versions of what computes a run's numbers; what is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record(directory: pathlib.Path, step: int) -> str | None:
    """Record the versions that a run goes on with, if they are not those of before; return what is to be said of it.

    Args:
      directory: of the run.
      step: that it goes on from; 0 for a new run.

    Raises:
      UserError: what is recorded there is no record of versions, or cannot be read.
      RunFailed: the disk is full.
    """
    file, now = directory / FILE, installed()
    try:
        history = read_json(file, "remove it: it is written anew", _history)
    except FileNotFoundError:
        history = []
    before = history[-1]["versions"] if history else now
    if history and before == now:
        return None
    with writing(file):
        write_whole(file, json.dumps({"history": [*history, {"from_step": step, "versions": now}]}, indent=2) + "\n")
    changes = [
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in PACKAGES
        if before.get(name) != now.get(name)
    ]
    return f"going on with other versions, which may round differently: {', '.join(changes)}" if changes else None


def _history(tree: dict[str, Any]) -> list[dict[str, Any]]:
    for entry in tree["history"]:
        if not isinstance(entry["from_step"], int) or not all(isinstance(v, str) for v in entry["versions"].values()):
            raise TypeError("an entry is not from_step and versions")
    return tree["history"]
