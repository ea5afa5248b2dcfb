"""A model as a directory of safetensors and JSON: written with its hashes, and verified when read.

model.safetensors           the parameters (more files and an index where they are large)
state.safetensors           the optimizer state and the step, where they were asked for
config.json, manifest.json  as in a workdir
vocabulary.json             what the ids stand for; vocabulary.model beside it, unless they are bytes
export.json                 step, metrics, arrays with their checksums, and the SHA-256 of every other file
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stagjax import __version__
from stagjax.bucket import is_bucket
from stagjax.checkpoints.facts import check_facts, check_model
from stagjax.checkpoints.stored import DamagedError, as_damage, on_default_device
from stagjax.checkpoints.tensor_files import SHARD_BYTES, TensorFiles, own_file, write_tensors
from stagjax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from stagjax.errors import UserError
from stagjax.fingerprint import checksum, describe, digest, fingerprint
from stagjax.printable import one_line

FACTS, CONFIG, MANIFEST, VOCABULARY = "export.json", "config.json", "manifest.json", "vocabulary.model"
FORMAT = 1
_MODEL, _STATE = "model", "state"
_DESCRIPTION, _SPECIALS = "vocabulary.json", {"pad": PAD, "bos": BOS, "eos": EOS}
_NAMES = ("step", "metrics", "skipped_batches", "arrays", "fingerprint")


def is_export(directory: pathlib.Path) -> bool:
    """Return whether `directory`, of this machine, was made by `write_export`."""
    return not is_bucket(directory) and (directory / FACTS).is_file()


def write_export(
    directory: pathlib.Path,
    state: Mapping[str, Any],
    metadata: Mapping[str, Any],
    vocabulary: Vocabulary,
    vocabulary_file: pathlib.Path | None,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int], None] = lambda size: None,
) -> None:
    """Write a model into an empty directory.

    Args:
      directory: which exists.
      state: {"params"} alone, or all of a training state.
      metadata: "step", "config", "manifest", "metrics" and "skipped_batches", as a checkpoint has them.
      vocabulary: of the ids.
      vocabulary_file: its SentencePiece model, None for bytes.
      shard_bytes: where the next file begins.
      on_tensor: called with the bytes of each tensor that was written.

    Raises:
      OSError: a file cannot be written.
      DamagedError: what was written is read otherwise.
    """
    files = write_tensors(directory, _MODEL, state["params"], shard_bytes, on_tensor)
    if rest := {name: tree for name, tree in state.items() if name != "params"}:
        files += write_tensors(directory, _STATE, rest, shard_bytes, on_tensor)
    for name, value in (
        (CONFIG, metadata["config"]),
        (MANIFEST, metadata["manifest"]),
        (_DESCRIPTION, _described(vocabulary, vocabulary_file)),
    ):
        _write_json(directory / name, value)
        files.append(name)
    if vocabulary_file is not None:
        shutil.copyfile(vocabulary_file, directory / VOCABULARY)
        files.append(VOCABULARY)
    facts = {
        "format": FORMAT,
        "stagjax": __version__,
        "step": metadata["step"],
        "metrics": metadata["metrics"],
        # Checkpoints of older versions have none.
        "skipped_batches": metadata.get("skipped_batches", []),
        "arrays": describe(state),
        "fingerprint": fingerprint(state),
        "files": {name: _sha256(directory / name) for name in sorted(files)},
    }
    _write_json(directory / FACTS, facts | {"digest": digest(facts)})
    verify_arrays(directory)


def read_metadata(directory: pathlib.Path) -> dict[str, Any]:
    """Return what a checkpoint's metadata are, from "step" to "fingerprint", checked and compared with files' heads.

    Raises:
      UserError: a fact is missing or of another type, or config and arrays are not one model's.
      DamagedError: a file is missing, is not in the directory, or not what was exported.
    """
    facts = _facts(directory)
    with as_damage():
        for name in (CONFIG, MANIFEST):
            _check_file(directory, name, facts)
        read = {
            "config": json.loads((directory / CONFIG).read_text()),
            "manifest": json.loads((directory / MANIFEST).read_text()),
        }
    metadata = read | {name: facts.get(name) for name in _NAMES if name in facts}
    check_facts(directory / FACTS, metadata)
    check_model(directory, metadata)
    for stem, names in _tensors(metadata["arrays"]).items():
        with as_damage():
            _open_files(directory, stem, names, metadata)
    return metadata


def read_params(
    directory: pathlib.Path, layout: Callable[[Any], Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters, verified and then cast to float32, and the metadata.

    Args:
      directory: of the export.
      layout: from the parameters' shapes to their shardings; None for the default device.

    Raises:
      DamagedError: the parameters are not what was exported.
    """
    metadata = read_metadata(directory)
    shapes = _tree({name: value for name, value in metadata["arrays"].items() if name.startswith("params/")})["params"]
    abstract = _laid_out(shapes, (layout or on_default_device)(shapes))
    with as_damage():
        params = TensorFiles(directory, _MODEL).read(abstract)
    _check_arrays({"params": params}, metadata)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params), metadata


def read_state(directory: pathlib.Path, abstract_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole training state, laid out as `abstract_state`, which an export with one has.

    Raises:
      DamagedError: it is not what was exported.
    """
    metadata = read_metadata(directory)
    rest = {name: tree for name, tree in abstract_state.items() if name != "params"}
    if describe(rest) != {name: text for name, text in metadata["arrays"].items() if not name.startswith("params/")}:
        raise UserError(f"{directory}: its optimizer state is not one of its config; export the model anew")
    with as_damage():
        state = {
            "params": TensorFiles(directory, _MODEL).read(abstract_state["params"]),
            **TensorFiles(directory, _STATE).read(rest),
        }
    _check_arrays(state, metadata)
    return state


def check_vocabulary(directory: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Raise `UserError` where the vocabulary is not the one that the export describes; `DamagedError` for its file."""
    facts = _facts(directory)
    with as_damage():
        _check_file(directory, _DESCRIPTION, facts)
        stated = json.loads((directory / _DESCRIPTION).read_text())
        wanted = {"size": vocabulary.size, "specials": _SPECIALS, "fingerprint": vocabulary.fingerprint}
        wrong = [name for name, value in wanted.items() if stated[name] != value]
    if wrong:
        raise UserError(f"{directory / _DESCRIPTION}: {wrong[0]} is not that of its vocabulary; export the model anew")


def has_state(metadata: Mapping[str, Any]) -> bool:
    """Return whether there is more than parameters in a checkpoint or an export."""
    return "step" in metadata["arrays"]


def check_files(directory: pathlib.Path, on_file: Callable[[str], None] = lambda name: None) -> None:
    """Read every file and compare its SHA-256 with what was exported.

    Args:
      directory: of the export.
      on_file: called with a file's name before it is read.

    Raises:
      DamagedError: a file is missing or differs.
    """
    facts = _facts(directory)
    for name in facts["files"]:
        on_file(name)
        with as_damage():
            _check_file(directory, name, facts)


def verify_arrays(directory: pathlib.Path) -> None:
    """Read every array, one at a time, and compare it with its checksum.

    Raises:
      DamagedError: one is not what was exported.
    """
    metadata = read_metadata(directory)
    for stem, names in _tensors(metadata["arrays"]).items():
        with as_damage():
            files = _open_files(directory, stem, names, metadata)
            for tensor, name in names.items():
                if checksum(files.array(tensor)) != metadata["fingerprint"][name]:
                    raise DamagedError(f"{name}: not what was exported")


def _open_files(
    directory: pathlib.Path, stem: str, names: Mapping[str, str], metadata: Mapping[str, Any]
) -> TensorFiles:
    """Return the files of a kind, whose tensors are those of `names` in the types and shapes of the metadata."""
    files = TensorFiles(directory, stem)
    found, wanted = files.describe(), {tensor: metadata["arrays"][name] for tensor, name in names.items()}
    for tensor in sorted({*found, *wanted}):
        if found.get(tensor) != wanted.get(tensor):
            held, stated = found.get(tensor, "nothing"), wanted.get(tensor, "nothing")
            raise DamagedError(f"{tensor}: {held} instead of {stated}: not what was exported")
    return files


def _tensors(arrays: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return for the stem of each kind of files which array each of its tensors is."""
    stems: dict[str, dict[str, str]] = {}
    for name in arrays:
        stem = _MODEL if name.startswith("params/") else _STATE
        stems.setdefault(stem, {})[name.removeprefix("params/").replace("/", ".")] = name
    return stems


def _facts(directory: pathlib.Path) -> dict[str, Any]:
    with as_damage():
        facts = json.loads((directory / FACTS).read_text())
        if not isinstance(facts, dict) or facts.pop("digest", None) != digest(facts):
            raise DamagedError(f"{FACTS}: not what was exported")
    if type(facts.get("format")) is not int or facts["format"] != FORMAT:
        stated, made = (one_line(facts.get(name), 60) for name in ("format", "stagjax"))
        raise UserError(
            f"{directory / FACTS}: format={stated}, and this version of stagjax reads {FORMAT}; use the one that "
            f"wrote it ({made}), or export the model anew"
        )
    if not isinstance(facts.get("files"), dict):
        stated = one_line(facts.get("files"), 60)
        raise UserError(f"{directory / FACTS}: files={stated} is not a table of hashes; export the model anew")
    with as_damage():
        for name in facts["files"]:
            own_file(directory, name)
    return facts


def _described(vocabulary: Vocabulary, file: pathlib.Path | None) -> dict[str, Any]:
    kind = "sentencepiece" if file is not None else "bytes: byte b is id 3 + b"
    return {
        "kind": kind,
        "file": VOCABULARY if file is not None else None,
        "size": vocabulary.size,
        "specials": _SPECIALS,
        "fingerprint": vocabulary.fingerprint,
    }


def _tree(arrays: Mapping[str, str]) -> dict[str, Any]:
    """Return nested dicts of `jax.ShapeDtypeStruct` from {"params/blocks/gate": "float32[2,3]"}."""
    tree: dict[str, Any] = {}
    for name, text in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = shape_of(text)
    return tree


def shape_of(text: str) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype that metadata state as e.g. "float32[2,3]"."""
    dtype, _, sizes = text.rstrip("]").partition("[")
    return jax.ShapeDtypeStruct(tuple(int(size) for size in sizes.split(",") if size), jnp.dtype(dtype))


def _laid_out(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _check_arrays(state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    for name, found in fingerprint(state).items():
        if metadata["fingerprint"].get(name) != found:
            raise DamagedError(f"{name}: not what was exported")


def _check_file(directory: pathlib.Path, name: str, facts: Mapping[str, Any]) -> None:
    if _sha256(own_file(directory, name)) != facts["files"].get(name):
        raise DamagedError(f"{name}: not what was exported")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
