"""A trained model wherever it is kept: a checkpoint of a workdir, also in a bucket, or an exported directory."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stagjax import bucket
from stagjax.bucket import CHECKPOINTS
from stagjax.checkpoints import exported
from stagjax.checkpoints.facts import check_model
from stagjax.checkpoints.saving import Checkpoints
from stagjax.checkpoints.stored import DamagedError, as_damage
from stagjax.checkpoints.tensor_files import own_file
from stagjax.data.vocabulary import Vocabulary, load_vocabulary
from stagjax.errors import RunFailed, UserError
from stagjax.files import check_place, directory
from stagjax.rules import is_whole
from stagjax.workdir import VOCABULARY


def parse(spec: str) -> tuple[pathlib.Path, str | int | None]:
    """Read "PATH[:best|:latest|:STEP]"; raise `UserError` where directories of both readings are there."""
    path, colon, checkpoint = spec.rpartition(":")
    if not colon or not (checkpoint in ("best", "latest") or is_whole(checkpoint)):
        return directory(spec), None
    if not bucket.is_bucket(spec) and directory(spec).exists():
        if directory(path).exists():
            raise UserError(
                f"{spec} is a directory, and {path} is one, too; write {spec}:best, or {path}/./:{checkpoint}"
            )
        return directory(spec), None
    return directory(path), int(checkpoint) if is_whole(checkpoint) else checkpoint


def read_metadata(path: pathlib.Path, checkpoint: str | int | None = None) -> dict[str, Any]:
    """Return a model's "step", "config", "manifest", "metrics", "arrays" and "fingerprint", without its arrays.

    Args:
      path: a workdir, one checkpoint in it (`WORKDIR/checkpoints/STEP`), or an export.
      checkpoint: "best", "latest" or a step; None is the best, or the latest if no checkpoint was validated.

    Raises:
      UserError: there is no model, or no such step.
      RunFailed: it is damaged.
    """
    with readable(path):
        if exported.is_export(path):
            return _of_export(path, checkpoint, lambda: exported.read_metadata(path))
        checkpoints, step = _of_workdir(path, checkpoint)
        metadata = checkpoints.read_metadata(step)
    check_model(f"checkpoint {metadata['step']} of {path}", metadata)
    return metadata


def read_model(
    path: pathlib.Path, checkpoint: str | int | None = None, layout: Callable[[Any], Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return a model's float32 parameters, verified, and its metadata.

    Args:
      path: as for `read_metadata`.
      checkpoint: likewise; it is this one that is read, or none.
      layout: from the parameters' shapes to their shardings; None for the default device.

    Raises:
      UserError: there is no model, or no such step.
      RunFailed: it is damaged.
    """
    with readable(path):
        if exported.is_export(path):
            return _of_export(path, checkpoint, lambda: exported.read_params(path, layout))
        checkpoints, step = _of_workdir(path, checkpoint)
        metadata = checkpoints.read_metadata(step)
        check_model(f"checkpoint {metadata['step']} of {path}", metadata)
        return checkpoints.restore_params(metadata["step"], layout)


def workdir_of(path: pathlib.Path) -> pathlib.Path:
    """Return the workdir of a checkpoint (`WORKDIR/checkpoints/STEP`); any other path is returned as it is."""
    whole = bucket.absolute(path)
    is_checkpoint = whole.name.isdecimal() and whole.parent.name == CHECKPOINTS
    return whole.parent.parent if is_checkpoint else path


@contextlib.contextmanager
def vocabulary_file(path: pathlib.Path, metadata: Mapping[str, Any]) -> Iterator[pathlib.Path | None]:
    """Yield a model's SentencePiece model, beside it or where it was trained, as a file here; None for bytes."""
    own = workdir_of(path) / VOCABULARY
    spec = metadata["config"]["data"]["vocabulary"]
    if exported.is_export(path):
        # Whoever wrote its config named a file of another machine.
        with damage_fails(path), as_damage():
            own = own_file(path, VOCABULARY)
        if not own.exists() and spec not in ("bytes", "prepared"):
            raise UserError(f"{path} has no {VOCABULARY}; copy the export again")
    if own.exists():
        with bucket.fetched(own) as name:
            yield pathlib.Path(name)
    else:
        # A workdir holds every vocabulary but that of bytes, also where data were prepared with it.
        yield None if spec in ("bytes", "prepared") else pathlib.Path(spec)


def read_vocabulary(path: pathlib.Path, metadata: Mapping[str, Any]) -> Vocabulary:
    """Return a model's vocabulary.

    Raises:
      UserError: it cannot be read, is not the one trained with, or has more ids than the model.
    """
    with vocabulary_file(path, metadata) as file:
        vocabulary = load_vocabulary("bytes" if file is None else str(file))
    if exported.is_export(path):
        with damage_fails(path):
            exported.check_vocabulary(path, vocabulary)
    trained_with = metadata["manifest"]["vocabulary_fingerprint"]
    if vocabulary.fingerprint != trained_with:
        spec = metadata["config"]["data"]["vocabulary"]
        raise UserError(
            f"data.vocabulary={spec!r} is not the file that the model was trained with: "
            f"its hash is {vocabulary.fingerprint[:12]}, not {trained_with[:12]}; put the original back"
        )
    if vocabulary.size > (ids := metadata["config"]["model"]["vocab_size"]):
        raise UserError(f"{path}: its vocabulary has {vocabulary.size} ids, and its model {ids}; it is another model's")
    return vocabulary


@contextlib.contextmanager
def damage_fails(path: pathlib.Path) -> Iterator[None]:
    """Raise `RunFailed`, with a remedy, where an export is damaged."""
    try:
        yield
    except DamagedError as error:
        raise RunFailed(f"{path} is damaged ({error}); copy it again, or export it anew") from error


def _of_export(path: pathlib.Path, checkpoint: str | int | None, read: Callable[[], Any]) -> Any:
    with damage_fails(path):
        step = exported.read_metadata(path)["step"]
        if checkpoint not in (None, "best", "latest", step):
            raise UserError(f"{path} is an export of step {step}: it holds no checkpoint {checkpoint}; leave that out")
        return read()


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Raise `UserError` where a workdir cannot be looked at."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; see its owner and permissions") from error


def _of_workdir(path: pathlib.Path, checkpoint: str | int | None) -> tuple[Checkpoints, str | int]:
    place = bucket.absolute(path)
    workdir = workdir_of(place)
    if not bucket.is_dir(workdir / CHECKPOINTS):
        raise UserError(
            f"{str(path)!r} holds no checkpoints and is no export; give the --workdir of a stagjax train run, or what "
            "stagjax checkpoint export wrote"
        )
    check_place(workdir, "workdir", "rename what has moved there")
    checkpoints = Checkpoints(workdir, keep_last=1, read_only=True)
    if workdir != place:
        if checkpoint not in (None, int(place.name)):
            raise UserError(f"{path} is checkpoint {place.name}, not {checkpoint}; name one of them")
        return checkpoints, int(place.name)
    if checkpoint is None:
        best = checkpoints.best()
        checkpoint = "latest" if best is None else best
    return checkpoints, checkpoint
