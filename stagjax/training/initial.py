"""Where a run starts: from parameters that are trained already, with an optimizer and a schedule of its own."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from stagjax import bucket
from stagjax.checkpoints.origin import parse, read_metadata, read_model, readable
from stagjax.checkpoints.saving import Checkpoints, content_key
from stagjax.config import Config, ModelConfig
from stagjax.data.manifest import Manifest
from stagjax.errors import RunFailed, UserError
from stagjax.files import directory, read_json, write_whole
from stagjax.fingerprint import describe
from stagjax.model.stagformer import abstract_params
from stagjax.training.state import TrainState, abstract_state, state_around

RECORD = "init_from.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model that a run starts from.

    Attributes:
      source: absolute path, or gs:// URL, of a workdir or an export.
      step: of the checkpoint.
      content_key: of its parameters and model config.
      vocabulary_fingerprint: of what its ids stand for.
    """

    source: str
    step: int
    content_key: str
    vocabulary_fingerprint: str

    def check_vocabulary(self, manifest: Manifest) -> None:
        """Raise `UserError` where the run's ids stand for something else than the origin's."""
        if manifest.vocabulary_fingerprint != self.vocabulary_fingerprint:
            own, there = manifest.vocabulary_fingerprint[:12], self.vocabulary_fingerprint[:12]
            raise UserError(
                f"data.vocabulary: the ids of {manifest.vocabulary_name!r} (hash {own}) are not those that "
                f"{self.source} was trained with (hash {there}); set data.vocabulary to its vocabulary.model"
            )

    def record(self, workdir: pathlib.Path) -> None:
        """Write down in the workdir where the run starts."""
        if jax.process_index() == 0 and not (workdir / RECORD).exists():
            try:
                write_whole(workdir / RECORD, json.dumps(dataclasses.asdict(self), indent=2) + "\n")
            except OSError as error:
                raise RunFailed(f"cannot write to {workdir}: {error.strerror}; free some space, start again") from error

    def state(self, config: Config, mesh: Mesh) -> TrainState:
        """Return the state before the first step: the origin's parameters, read onto `mesh`, and a new optimizer.

        Raises:
          UserError: the origin is no longer what it was when the run was started.
          RunFailed: it is damaged.
        """
        abstract = abstract_state(config, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        params, metadata = read_model(directory(self.source), self.step, lambda _: shardings["params"])
        if content_key(metadata) != self.content_key:
            raise UserError(f"{self.source} is not what the run was started from; put it back, or use a new --workdir")
        rest = [name for name in abstract if name != "params"]
        init = jax.jit(
            lambda params: {name: state_around(config, params)[name] for name in rest},
            out_shardings={name: shardings[name] for name in rest},
        )
        return {"params": params} | init(params)


def find_origin(
    workdir: pathlib.Path, model: ModelConfig, init_from: str | None, files: pathlib.Path | None = None
) -> Origin | None:
    """Return what the run in `workdir` starts, or started, from; None for fresh parameters.

    A run that has been started is compared with its record, and needs its origin no more once its step 0 is saved.

    Args:
      workdir: of the run.
      model: of the run.
      init_from: "WORKDIR[:CHECKPOINT]" or an export, None if not given.
      files: where the workdir's small files are, if it is in a bucket.

    Raises:
      UserError: there is no such model, its parameters have other shapes, or the run was started from another one.
    """
    record = (files or workdir) / RECORD
    with readable(workdir):
        started = Checkpoints(workdir, keep_last=1, read_only=True).present()
    if not record.exists():
        if init_from is None:
            return None
        if started:
            raise UserError(
                f"--init-from={init_from}: the run in --workdir={workdir} has begun without it; give a new --workdir"
            )
        return _open(init_from, model)
    remedy = "put a copy of it back, or give a new --workdir"
    origin = read_json(record, remedy, _recorded)
    if init_from is None:
        if not started:
            raise UserError(
                f"--workdir={workdir} is to start from {origin.source}, and nothing of it is saved yet; give "
                f"--init-from={origin.source}:{origin.step} again"
            )
        return origin
    path, checkpoint = parse(init_from)
    # By name first: the best checkpoint there may be another one by now, and the directory may be gone.
    if _absolute(path) != origin.source or checkpoint not in (None, "best", "latest", origin.step):
        given = _open(init_from, model)
        if given.content_key != origin.content_key:
            raise UserError(
                f"--init-from={init_from} is not what --workdir={workdir} was started from, which is step "
                f"{origin.step} of {origin.source}; leave it out, or use a new --workdir"
            )
        return given
    return origin


def _recorded(fields: Mapping[str, Any]) -> Origin:
    origin = Origin(**fields)
    for field in dataclasses.fields(Origin):
        if not isinstance(getattr(origin, field.name), field.type):
            raise TypeError(f"{field.name} is no {field.type.__name__}")
    return origin


def _open(init_from: str, model: ModelConfig) -> Origin:
    path, checkpoint = parse(init_from)
    metadata = read_metadata(path, checkpoint)
    _check_shapes(init_from, metadata["arrays"], model)
    return origin_of(path, metadata)


def origin_of(path: pathlib.Path, metadata: Mapping[str, Any]) -> Origin:
    """Return what is recorded of the model at `path`, whose metadata these are."""
    fingerprint = metadata["manifest"]["vocabulary_fingerprint"]
    return Origin(_absolute(path), metadata["step"], content_key(metadata), fingerprint)


def _absolute(path: pathlib.Path) -> str:
    return os.fspath(bucket.absolute(path))


def _check_shapes(init_from: str, arrays: dict[str, str], model: ModelConfig) -> None:
    """Raise `UserError` naming the first parameter whose shape is not the run's; dtypes may differ."""
    shape = lambda text: text and text[text.index("[") :]
    wanted = describe({"params": abstract_params(model)})
    saved = {name: text for name, text in arrays.items() if name.startswith("params/")}
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        had, has = shape(saved.get(name)), shape(wanted.get(name))
        if had != has:
            raise UserError(
                f"--init-from={init_from}: {name} has there the shape {had or '(none: it is missing)'}, but in this "
                f"run's config {has or '(none: it has no such parameter)'}; make them equal, or see `stagjax "
                "checkpoint convert`, which turns a baseline into stacks and lengthens positions"
            )
