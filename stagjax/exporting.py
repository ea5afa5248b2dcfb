"""Models that change hands: from a workdir to an export, back to a workdir, and to a model of another shape."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from stagjax import workdir as workdirs
from stagjax.checkpoints import exported
from stagjax.checkpoints.origin import (
    damage_fails,
    read_metadata,
    read_model,
    read_vocabulary,
    vocabulary_file,
    workdir_of,
)
from stagjax.checkpoints.saving import Checkpoints
from stagjax.checkpoints.stored import DamagedError
from stagjax.checkpoints.tensor_files import SHARD_BYTES
from stagjax.config import Config, to_json
from stagjax.config_rules import COSINE
from stagjax.data.manifest import Manifest
from stagjax.errors import RunFailed, UserError, unknown
from stagjax.files import check_place, new_directory, write_whole
from stagjax.model.conversion import DEFAULT_LAYERS, check_layers, convert_config, convert_params
from stagjax.training.initial import RECORD, origin_of
from stagjax.training.state import abstract_state, state_around
from stagjax.training.validation import validate

DTYPES = ("float32", "bfloat16")


def export_model(
    source: pathlib.Path,
    output: pathlib.Path,
    checkpoint: str | int | None = None,
    dtype: str = "float32",
    with_state: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int], None] = lambda size: None,
) -> dict[str, Any]:
    """Write a checkpoint to `output` as safetensors and JSON.

    Args:
      source: a workdir or one of its checkpoints.
      output: a directory that does not exist.
      checkpoint: as for `stagjax.checkpoints.origin.read_metadata`.
      dtype: of the parameters; "bfloat16" rounds them.
      with_state: the optimizer state and the step too.
      shard_bytes: where the next file begins.
      on_tensor: called with the bytes of each tensor that was written.

    Returns:
      The export's metadata.

    Raises:
      UserError: `output` exists or cannot be written, `source` holds no such checkpoint, a state in bfloat16.
      RunFailed: the checkpoint is damaged, the disk is full, or what was written is read otherwise.
    """
    if dtype not in DTYPES:
        raise unknown("--dtype", dtype, DTYPES)
    if with_state and dtype != "float32":
        raise UserError(f"--dtype={dtype} with --state: a state that training goes on from is float32; leave one out")
    if with_state and exported.is_export(source):
        raise UserError(f"--state: {source} is an export; copy its files, or export from the workdir")
    with new_directory(output) as directory:
        if with_state:
            state, metadata = _read_state(source, checkpoint)
        else:
            params, metadata = read_model(source, checkpoint)
            state = {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), params)}
        if dtype != "float32":
            # The loss was that of the parameters before they were rounded.
            metadata = metadata | {"metrics": {"validation_loss": None}}
        vocabulary = read_vocabulary(source, metadata)
        with vocabulary_file(source, metadata) as file:
            try:
                exported.write_export(directory, state, metadata, vocabulary, file, shard_bytes, on_tensor)
            except DamagedError as error:
                raise RunFailed(
                    f"{output} was not written: read back, it is not the model ({error}); look for a failing disk, or "
                    "another version of safetensors"
                ) from error
    return exported.read_metadata(output)


def import_model(
    source: pathlib.Path, workdir: pathlib.Path, on_file: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Make a workdir of an export: with the exported state if there is one, else with a new one at step 0.

    Args:
      source: the exported directory.
      workdir: a directory that does not exist.
      on_file: called with the name of each file before it is verified.

    Returns:
      The checkpoint's metadata.

    Raises:
      UserError: `source` is no export, `workdir` exists or cannot be written.
      RunFailed: the export is damaged, or the disk is full.
    """
    check_place(workdir, "--workdir")
    if not exported.is_export(source):
        raise UserError(
            f"{source} is no export: it has no {exported.FACTS}; give what `stagjax checkpoint export` wrote"
        )
    with new_directory(workdir) as directory, damage_fails(source):
        exported.check_files(source, on_file)
        metadata = exported.read_metadata(source)
        config = Config.from_dict(metadata["config"])
        read_vocabulary(source, metadata)
        loss, step, skipped = metadata["metrics"]["validation_loss"], 0, []
        if exported.has_state(metadata):
            state, step = exported.read_state(source, abstract_state(config)), metadata["step"]
            skipped = metadata["skipped_batches"]
        else:
            # The schedule begins anew, too, whatever build trained the model.
            config = dataclasses.replace(config, training=dataclasses.replace(config.training, schedule=COSINE))
            state = _new_state(config, exported.read_params(source)[0])
            _record(directory, source, metadata)
        with vocabulary_file(source, metadata) as file:
            _write_workdir(directory, config, metadata["manifest"], file, state, step, loss, skipped)
    return read_metadata(workdir)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
      metadata: of the new checkpoint.
      before: validation of the source on its own corpus, None where that cannot be loaded.
      after: the same of the new model.
      not_validated: why there is neither.
    """

    metadata: dict[str, Any]
    before: dict[str, float] | None
    after: dict[str, float] | None
    not_validated: str = ""


def convert_model(
    source: pathlib.Path,
    output: pathlib.Path,
    checkpoint: str | int | None = None,
    to: str | None = None,
    num_stacks: int = 2,
    layers: str = DEFAULT_LAYERS,
    changes: Mapping[str, Any] | None = None,
) -> Conversion:
    """Make a workdir with a model of another shape, see `stagjax.model.conversion`; its state is new, at step 0.

    Args:
      source: a workdir, a checkpoint or an export.
      output: a directory that does not exist.
      checkpoint: as for `stagjax.checkpoints.origin.read_metadata`.
      to: "separate" or "shared", None to keep the stacks.
      num_stacks: of the new model.
      layers: which layers of a baseline separate stacks get.
      changes: other fields of the model.

    Raises:
      UserError: a conversion that makes no sense, no such model, an `output` that exists or cannot be written.
      RunFailed: the source is damaged, or the disk is full.
    """
    check_place(output, "--output")
    metadata = read_metadata(source, checkpoint)
    config = Config.from_dict(metadata["config"])
    converted = convert_config(config, to, num_stacks, changes)
    check_layers(layers)
    with new_directory(output) as directory:
        params, metadata = read_model(source, metadata["step"])
        new = convert_params(config.model, params, converted.model, layers)
        before, after, reason = None, None, ""
        try:
            before, after = validate([(config, params), (converted, new)], Manifest.from_dict(metadata["manifest"]))
        except UserError as error:
            reason = str(error)
        loss = after and after["loss"]
        _record(directory, source, metadata)
        with vocabulary_file(source, metadata) as file:
            _write_workdir(directory, converted, metadata["manifest"], file, _new_state(converted, new), 0, loss)
    return Conversion(read_metadata(output), before, after, reason)


def _read_state(source: pathlib.Path, checkpoint: str | int | None) -> tuple[Any, dict[str, Any]]:
    metadata = read_metadata(source, checkpoint)
    checkpoints = Checkpoints(workdir_of(source), keep_last=1, read_only=True)
    return checkpoints.restore(abstract_state(Config.from_dict(metadata["config"])), metadata["step"])


def _new_state(config: Config, params: Any) -> dict[str, Any]:
    """Return the state of step 0 around parameters, which are not copied."""
    new = jax.jit(
        lambda params: {name: tree for name, tree in state_around(config, params).items() if name != "params"}
    )
    return {"params": params} | new(params)


def _record(directory: pathlib.Path, source: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    origin = origin_of(source, metadata)
    write_whole(directory / RECORD, json.dumps(dataclasses.asdict(origin), indent=2) + "\n")


def _write_workdir(
    directory: pathlib.Path,
    config: Config,
    manifest: Mapping[str, Any],
    vocabulary: pathlib.Path | None,
    state: Mapping[str, Any],
    step: int,
    loss: float | None,
    skipped_batches: Sequence[tuple[int, int]] = (),
) -> None:
    """Write what a training run leaves behind: config, manifest, vocabulary and one checkpoint."""
    if vocabulary is not None:
        shutil.copyfile(vocabulary, directory / workdirs.VOCABULARY)
    write_whole(directory / workdirs.MANIFEST, json.dumps(manifest, indent=2, sort_keys=True))
    write_whole(directory / workdirs.CONFIG, to_json(config))
    with contextlib.closing(Checkpoints(directory, keep_last=1)) as checkpoints:
        checkpoints.save(step, state, config.to_dict(), manifest, loss, skipped_batches)
