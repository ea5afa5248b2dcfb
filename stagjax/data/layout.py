"""A directory of shards, on a disk or in a bucket: which files there are, and which split each belongs to."""

import concurrent.futures
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

from stagjax.data.sources import JSONL_SUFFIXES, is_hidden, pile_split, refuse_twins, unread_lines
from stagjax.errors import RunFailed, UserError
from stagjax.files import read_text, text_lines

SPLITS = ("train", "validation", "test")
_LISTING_SECONDS = 60.0
_STALL_SECONDS = 300.0
_READ = 1 << 22  # Bytes asked of a bucket at a time.


class Shard(NamedTuple):
    """A file of JSON lines.

    Attributes:
      name: relative to the directory, e.g. "train/00.jsonl.zst".
      path: from which it is opened.
      size: in bytes.
      split: that all its documents belong to; None where each document's name decides.
    """

    name: str
    path: str
    size: int
    split: str | None


def list_shards(
    path: str,
    validation_percent: int | None,
    seconds: float = _LISTING_SECONDS,
    note: Callable[[str], None] = lambda line: None,
) -> list[Shard]:
    """Return the shards of a directory, sorted by name.

    Args:
      path: a directory, or "gs://bucket/directory". With a subdirectory train/ it is read like The Pile: train/ and
        beside it val or validation and test; otherwise all files that end in one of `JSONL_SUFFIXES` are one pool.
      validation_percent: of the documents to hold out where no file is made for that; None if there is one.
      seconds: within which a bucket has to answer.
      note: called with a line for people on what else lies there, if anything does; hidden files are not counted.

    Raises:
      UserError: no such directory, no shard in it, an empty shard, two of one name, or no validation split.
    """
    entries = _in_time(lambda: _list(path), path, seconds)
    sizes = {name: size for name, size in entries.items() if size is not None and name.endswith(JSONL_SUFFIXES)}
    pile = any(name.startswith("train/") for name in sizes)
    splits = {name: pile_split(name) if pile else None for name in sizes}
    if pile:
        # What lies beside train/ under other names is no part of the corpus as published.
        splits = {name: split for name, split in splits.items() if split is not None}
    unread = unread_lines([name for name in entries if name not in splits and name != "train/"], JSONL_SUFFIXES)
    if not sizes:
        raise UserError(
            f"--path={path} has no file that ends in {' or '.join(JSONL_SUFFIXES)}, neither directly nor in train/"
            f"{''.join(f' ({line})' for line in unread)}; correct the path"
        )
    refuse_twins("--path", path, splits)
    held_out = "validation" in splits.values()
    if held_out and validation_percent is not None:
        raise UserError(
            f"--validation-percent={validation_percent} holds out training documents, but --path={path} has a "
            "validation file of its own; leave the flag away"
        )
    if not held_out and validation_percent is None:
        raise UserError(
            f"--path={path} has no validation file (val.jsonl.zst beside train/); add it, or say "
            "--validation-percent=1 to hold out that share of the documents"
        )
    if not held_out:
        splits = {name: None if split == "train" else split for name, split in splits.items()}
    for name in splits:
        if not sizes[name]:
            raise UserError(f"--path={path}: {name} is empty; copy it again, or remove it")
    for line in unread:
        note(line)
    join = path.rstrip("/") + "/" if _is_url(path) else os.path.join(path, "")
    return [Shard(name, join + name, sizes[name], splits[name]) for name in sorted(splits)]


def open_shard(path: str, seconds: float = _STALL_SECONDS) -> IO[bytes]:
    """Open a file for reading, on a disk or in a bucket.

    Raises:
      OSError: it cannot be read.
      RunFailed: a bucket does not answer within `seconds`.
    """
    if not _is_url(path):
        return open(path, "rb")
    return _Remote(path, seconds)


def read_expected_hashes(path: str, names: list[str]) -> dict[str, str]:
    """Return the sha256 that a file in the format of `sha256sum` gives for each of `names`, in hexadecimal.

    Raises:
      UserError: it cannot be read, a line is none of that format, or a shard is not in it.
    """
    try:
        lines = text_lines(read_text(pathlib.Path(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sha256={path} cannot be read ({error}); give a file written by sha256sum") from None
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if not match:
            raise UserError(f"--sha256={path}, line {number}: not 64 hexadecimal digits, two spaces and a file name")
        hashes[match[2]] = match[1].lower()
    found = {}
    for name in names:
        # sha256sum may have been run elsewhere; a name's end has to be the shard's, whole parts of it.
        wanted = [value for known, value in hashes.items() if known == name or known.endswith(f"/{name}")]
        if len(wanted) != 1:
            raise UserError(f"--sha256={path} has {len(wanted)} hashes for {name}; it needs one for every shard")
        found[name] = wanted[0]
    return found


def _is_url(path: str) -> bool:
    return "://" in path


def _list(path: str) -> Mapping[str, int | None]:
    """Return what lies directly in a directory or in its train/, but for hidden files: sizes by name, None for others.

    The name of a directory ends in a slash.
    """
    if _is_url(path):
        return _list_remote(path)
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f"--path={path} {'is not a directory' if root.exists() else 'does not exist'}; correct it")
    found: dict[str, int | None] = {}
    for file in [file for directory in (root, root / "train") if directory.is_dir() for file in directory.iterdir()]:
        if not is_hidden(file.name):
            name = file.relative_to(root).as_posix()
            found[f"{name}/" if file.is_dir() else name] = file.stat().st_size if file.is_file() else None
    return found


def _list_remote(path: str) -> Mapping[str, int | None]:
    filesystem = _filesystem(path)
    root = filesystem._strip_protocol(path).rstrip("/")
    found: dict[str, int | None] = {}
    for directory in (root, f"{root}/train"):
        try:
            entries = filesystem.ls(directory, detail=True)
        except FileNotFoundError:
            if directory == root:
                raise
            continue
        for entry in entries:
            name = entry["name"].rstrip("/")
            # A directory may list a marker of itself.
            if name != directory and not is_hidden(name.rpartition("/")[2]):
                is_file = entry["type"] == "file"
                name = name.removeprefix(f"{root}/")
                found[name if is_file else f"{name}/"] = entry["size"] if is_file else None
    return found


def _filesystem(path: str) -> Any:
    import fsspec

    # They warn, several times, of credentials that a public bucket does not need.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return fsspec.core.url_to_fs(path)[0]
    except ImportError as error:
        raise UserError(
            f"--path={path} needs a package that is missing ({error}); pip install 'stagjax[gcs]'"
        ) from None
    except ValueError as error:
        raise UserError(f"--path={path}: {error}; use a directory or gs://BUCKET/DIRECTORY") from None


def _in_time(work: Callable[[], Any], path: str, seconds: float) -> Any:
    """Return what `work` gives; a bucket that does not answer, or refuses, is the user's to correct."""
    if not _is_url(path):
        return work()
    try:
        return _bounded(work, seconds)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"--path={path} does not exist; correct it") from None
    except _NoAnswer:
        raise UserError(
            f"--path={path} gives no answer within {seconds:g} s; look at the network, the name and the credentials"
        ) from None
    except Exception as error:
        # Whatever a client library raises: no network, no credentials, no permission.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--path={path} cannot be listed ({reason}); look at the network, the name and the credentials "
            "(gcloud auth application-default login)"
        ) from None


class _NoAnswer(Exception):
    """A bucket did not answer in time."""


def _bounded(work: Callable[[], Any], seconds: float) -> Any:
    """Return work(), done in a thread that is left behind where it takes too long: client libraries retry for minutes.

    Raises:
      _NoAnswer: it took longer than `seconds`.
    """
    result: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    concurrent.futures.wait([result], seconds)
    if not result.done():
        raise _NoAnswer
    return result.result()


class _Remote:
    """A file in a bucket, every answer of which comes within bounded time.

    Raises (also `read`):
      OSError: it cannot be read.
      RunFailed: no answer within `seconds`.
    """

    def __init__(self, path: str, seconds: float):
        self._path, self._seconds = path, seconds
        self._buffer, self._position = b"", 0
        self._file = self._ask(lambda: _filesystem(path).open(path, "rb", block_size=_READ))

    def __enter__(self) -> "_Remote":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:  # A file that does not answer would not close either.
            self._file.close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""
        if self._position == len(self._buffer):
            self._buffer, self._position = self._ask(lambda: self._file.read(_READ)), 0
        data = self._buffer[self._position : self._position + size]
        self._position += len(data)
        return data

    def _ask(self, work: Callable[[], Any]) -> Any:
        try:
            return _bounded(work, self._seconds)
        except _NoAnswer:
            raise RunFailed(
                f"{self._path} gives no answer within {self._seconds:g} s; look at the network, then start again: what "
                "is finished stays"
            ) from None
        except (OSError, UserError):
            raise
        except Exception as error:
            # A client library's own kind of error, of which another process could not even be told.
            raise OSError(f"{type(error).__name__}: {error}") from None
