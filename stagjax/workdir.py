"""A run's directory: whose it is, what it was started with, and that only one run, on all its hosts, writes to it."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Protocol

import jax

from stagjax import bucket, distributed
from stagjax.bucket import CHECKPOINTS
from stagjax.config import Config, config_differences, to_json
from stagjax.config_rules import COSINE_FROM_ZERO
from stagjax.data.manifest import Manifest, differences
from stagjax.data.prepared import vocabulary_spec
from stagjax.errors import RunFailed, UserError
from stagjax.files import check_place, read_json, write_whole

CONFIG, MANIFEST, VOCABULARY, LOCK = "config.json", "manifest.json", "vocabulary.model", ".lock"


_REMEDY = "put a copy of it back, or give a new --workdir, with --init-from for the parameters of this one"


class Directory(Protocol):
    """Where a run's small files are while it runs.

    Attributes:
      path: the workdir, or what stands for it on this machine where it is in a bucket.
    """

    path: pathlib.Path

    def sync(self) -> None:
        """Have the bucket, if there is one, brought up to date soon; raise `RunFailed` where it has long not been."""


@dataclasses.dataclass(frozen=True)
class _Local:
    path: pathlib.Path

    def sync(self) -> None:
        """Do nothing: it is where it should be."""


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[Directory]:
    """Hold the workdir for this run; create it where it is missing.

    Process 0 holds it for all; the others see that it is the same directory for them.

    Args:
      workdir: a directory, of this machine or in a bucket (`files.directory`).

    Raises:
      UserError: checkpoints cannot be kept under its name, it cannot be created, belongs to something else, another
        run is training in it, or hosts do not share it.
      RunFailed: the bucket did not take what the run left.
    """
    check_place(workdir, "--workdir")
    if bucket.is_bucket(workdir):
        with bucket.mirrored(os.fspath(workdir), writes=jax.process_index() == 0) as mirror:
            _refuse_foreign(mirror.path, workdir)
            yield mirror
        return
    with contextlib.ExitStack() as held:
        mark = secrets.token_hex(8)
        if jax.process_index() == 0:
            held.enter_context(_locked(workdir, mark))
        # A mark of each start: an old one would be found in a copy of the directory, too.
        mark = distributed.gather("workdir", mark)[0]
        if jax.process_count() > 1:
            seen = distributed.gather("workdir's mark", _mark(workdir) == mark)
            if not all(seen):
                elsewhere = ", ".join(distributed.process_name(n) for n, sees in enumerate(seen) if not sees)
                raise UserError(
                    f"--workdir={workdir} is not the directory of process 0 for {elsewhere}; give one on storage that "
                    "all hosts share"
                )
        yield _Local(workdir)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path, mark: str) -> Iterator[None]:
    """Lock the workdir, and leave `mark` in it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(workdir, workdir)
        lock = open(workdir / LOCK, "a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}; give another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--workdir={workdir} is in use by another process; wait for it or end it") from error
        with contextlib.suppress(OSError):  # a full disk, of which the first file that matters will tell
            lock.truncate(0)
            lock.write(mark)
            lock.flush()
        yield


def _refuse_foreign(path: pathlib.Path, workdir: pathlib.Path) -> None:
    if (path / CONFIG).exists():
        return
    # A run that was killed while it claimed its workdir has left its lock, and some of what `claim` writes.
    claimed = (CONFIG, MANIFEST, VOCABULARY) if (path / LOCK).exists() else ()
    names = {entry.name.removesuffix(".partial") for entry in path.iterdir() if not entry.name.startswith(".")}
    if CHECKPOINTS in names:
        raise UserError(f"{path / CONFIG} is missing, which says what the run is; {_REMEDY}")
    if names - {*claimed}:
        raise UserError(
            f"--workdir={workdir} is not empty and was not made by stagjax train; give a new or an empty directory"
        )


def _mark(workdir: pathlib.Path) -> str | None:
    try:
        return (workdir / LOCK).read_text()
    except OSError:
        return None


def resumed(workdir: pathlib.Path, config: Config) -> Config:
    """Return the config by which the workdir's run goes on: `config`, but the learning rates are those it began with.

    Raises:
      UserError: the run was started with another config; the fields that differ are listed.
    """
    if not (workdir / CONFIG).exists():
        return config
    stored = read_json(workdir / CONFIG, _REMEDY, Config.from_dict)
    if stored.training.schedule == COSINE_FROM_ZERO:
        # Which an earlier build began: nobody chose it, and the command line that goes on says nothing of it.
        training = dataclasses.replace(config.training, schedule=COSINE_FROM_ZERO)
        config = dataclasses.replace(config, training=training)
    _refuse(workdir, config_differences(stored, config))
    return config


def claim(workdir: pathlib.Path, config: Config, manifest: Manifest) -> None:
    """Store config, data manifest and vocabulary in a new workdir; compare them with an old one's.

    A resumed run stores its config anew: the fields that may change have changed. Process 0 writes, for all.

    Raises:
      UserError: the data are not those that the run was started with, or hosts have read different data; the differing
        fields are listed.
      RunFailed: the disk is full.
    """
    distributed.agree("their data", {name: str(value) for name, value in manifest.to_dict().items()})
    # Without a config nothing was trained yet: the run that left its manifest was killed at this place.
    if (workdir / CONFIG).exists():
        if not (workdir / MANIFEST).exists():
            raise UserError(f"{workdir / MANIFEST} is missing, which says what the run was trained on; {_REMEDY}")
        _refuse(workdir, differences(read_json(workdir / MANIFEST, _REMEDY, Manifest.from_dict), manifest))
    if jax.process_index() == 0:
        _write(workdir, config, manifest)
    distributed.gather("claimed", True)


def _write(workdir: pathlib.Path, config: Config, manifest: Manifest) -> None:
    try:
        if not (workdir / CONFIG).exists():
            (workdir / VOCABULARY).unlink(missing_ok=True)
        vocabulary = vocabulary_spec(config.data)
        if vocabulary != "bytes" and not (workdir / VOCABULARY).exists():
            partial = workdir / (VOCABULARY + ".partial")
            shutil.copyfile(vocabulary, partial)
            os.replace(partial, workdir / VOCABULARY)
        write_whole(workdir / MANIFEST, json.dumps(manifest.to_dict(), indent=2, sort_keys=True))
        # Last: its presence says that the workdir is whole.
        write_whole(workdir / CONFIG, to_json(config))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise RunFailed(f"cannot write to {workdir}: {error.strerror}; free some space and start again") from error


def _refuse(workdir: pathlib.Path, lines: list[str]) -> None:
    if lines:
        raise UserError(
            f"--workdir={workdir} holds a run of another experiment; {len(lines)} differing: {'; '.join(lines)}; "
            "use a new --workdir, or the stored values"
        )
