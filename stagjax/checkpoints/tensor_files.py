"""Arrays as safetensors files: one file, or several with an index as Hugging Face writes it; read slice by slice.

A tensor's name is its path in the tree, joined by ".": `blocks.mlp.gate`.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from stagjax.fingerprint import describe

_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "BOOL": "bool"} | {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}
"""What safetensors calls the types of arrays."""

SHARD_BYTES = 5 * 10**9
"""Largest file, unless a single tensor is larger; Hugging Face's limit."""


def write_tensors(
    directory: pathlib.Path,
    stem: str,
    tree: Any,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int], None] = lambda size: None,
) -> list[str]:
    """Write the leaves of `tree` to `STEM.safetensors`, or to `STEM-0000i-of-0000n.safetensors` and an index.

    Args:
      directory: which exists.
      stem: of the files' names.
      tree: pytree of arrays that this process can read whole.
      shard_bytes: where the next file begins; one file's tensors are in memory at a time.
      on_tensor: called with the bytes of each tensor that was written.

    Returns:
      The names of the files.

    Raises:
      OSError: a file cannot be written.
    """
    leaves = {tensor_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    shards = _shards({name: leaf.nbytes for name, leaf in leaves.items()}, shard_bytes)
    files = [f"{stem}.safetensors"]
    if len(shards) > 1:
        files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        # In C order, whatever the layout on the device: safetensors 0.8 writes an array as it lies in memory.
        tensors = {name: np.asarray(leaves[name], order="C") for name in names}
        _write(tensors, directory / file)
        for name in names:
            on_tensor(leaves[name].nbytes)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in leaves.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / _index(stem)).write_text(json.dumps(index, indent=2) + "\n")
        files.append(_index(stem))
    return files


class TensorFiles:
    """The tensors that `write_tensors` wrote below `directory` as `stem`; nothing is read before it is asked for.

    Opening and reading raise whatever the files' fault makes of them: an OSError, a ValueError, a SafetensorError.
    """

    def __init__(self, directory: pathlib.Path, stem: str):
        files = {f"{stem}.safetensors"}
        if os.path.lexists(directory / _index(stem)):
            files = {*json.loads(own_file(directory, _index(stem)).read_text())["weight_map"].values()}
        self._where: dict[str, Any] = {}
        for file in sorted(files):
            reader = safetensors.safe_open(own_file(directory, file), framework="np")
            self._where |= dict.fromkeys(reader.keys(), reader)

    def describe(self) -> dict[str, str]:
        """Return the type and shape of each tensor, e.g. "float32[2,3]", as the files' heads have it."""
        return {name: self._described(name) for name in self._where}

    def _described(self, name: str) -> str:
        stored = self._where[name].get_slice(name)
        return f"{_TYPES.get(stored.get_dtype())}[{','.join(map(str, stored.get_shape()))}]"

    def array(self, name: str) -> np.ndarray:
        """Return one tensor, whole, in the memory of this machine."""
        return self._where[name].get_tensor(name)

    def read(self, abstract: Any) -> Any:
        """Return a tree like `abstract` (of `jax.ShapeDtypeStruct` with shardings), which is what the files hold.

        Each process reads the slices that its own devices hold.
        """
        return jax.tree_util.tree_map_with_path(self._placed, abstract)

    def _placed(self, path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        name = tensor_name(path)
        if name not in self._where:
            raise ValueError(f"there is no tensor {name}")
        if (found := self._described(name)) != (wanted := describe({name: like})[name]):
            raise ValueError(f"{name} is {found}, not {wanted}")
        if not like.shape:
            return jax.device_put(self._where[name].get_tensor(name), like.sharding)
        stored = self._where[name].get_slice(name)
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: stored[index])


def own_file(directory: pathlib.Path, name: Any) -> pathlib.Path:
    """Return the path of a file right in a directory; raise `ValueError` for a name that leads anywhere else.

    Whoever made an export wrote its names: they may be paths or links, of anything on this machine, or pipes.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or os.path.basename(name) != name:
        raise ValueError(f"{name!r} is no name of a file in the directory")
    path = directory / name
    if path.resolve().parent != directory.resolve():
        raise ValueError(f"{name} is a link out of the directory")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is no file")
    return path


def tensor_name(path: tuple[Any, ...]) -> str:
    """Return the name of a leaf from its `jax.tree_util` key path."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Return the names in order, cut where a shard would become larger than `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _index(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def _write(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "np"})
    except safetensors.SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    path.chmod(mode)  # safetensors leaves it readable by its owner alone
    with path.open("rb") as file:
        os.fsync(file.fileno())
