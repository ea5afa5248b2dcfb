"""Files and directories, written whole or not at all: under a temporary name, then renamed."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from stagjax.errors import RunFailed, UserError
from stagjax.printable import one_line

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What a system says when it has no more space."""


def directory(text: str | os.PathLike[str]) -> Any:
    """Return the path of a directory as the user wrote it: a `pathlib.Path`, or an `epath.Path` in a bucket (gs://)."""
    if not os.fspath(text).startswith("gs://"):
        return pathlib.Path(text)
    # Otherwise etils reads buckets by TensorFlow where that is installed, and loads it: 8 s and 650 MB.
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    return epath.Path(text)


def read_text(path: pathlib.Path) -> str:
    """Return a text file of the user's: UTF-8 whatever the locale, without a byte order mark, line ends as they are.

    Raises:
      OSError: it cannot be read.
      UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_bytes().decode("utf-8-sig")


def read_json(path: pathlib.Path, remedy: str, build: Callable[[dict[str, Any]], T] = dict) -> T:
    """Return what `build` makes of the JSON object in a file that a command of this project wrote.

    Args:
      path: of the file.
      remedy: what to do where it is damaged, for the message.
      build: may raise what Python does for a field that is missing or of another type.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it cannot be read, or is not what was written.
    """
    try:
        tree = json.loads(path.read_bytes().decode())
        if not isinstance(tree, dict):
            raise TypeError(f"a {type(tree).__name__} instead of an object")
        return build(tree)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged (nested too deeply); {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error, 200)
        raise UserError(f"{path} is damaged ({what}); {remedy}") from error


def text_lines(text: str) -> list[str]:
    """Return lines, which end in a newline with or without a carriage return before it.

    In nothing else: `str.splitlines` also cuts at form feeds, U+0085 and U+2028, which stand within lines of JSON.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is text: extensions in C++ refuse other ones with an error about types."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_place(path: Any, flag: str, remedy: str = "give another directory") -> None:
    """Raise `UserError` for a directory, of this machine or in a bucket, that checkpoints cannot be kept in.

    Below it Orbax would look for the parts of a checkpoint by a glob pattern, in which the name stands as it is, and
    TensorStore would read the name as part of a URL; and checkpoints would be lost.
    """
    text = os.fspath(path)
    whole = text.removeprefix("gs://") if text.startswith("gs://") else os.fspath(pathlib.Path(path).resolve())
    bad = [character for character in "*?[\\" if character in whole]
    bad += ["gs:"] if "gs:/" in f"{whole}/" else []
    bad += ["~"] if text.startswith("~") else []
    bad += [] if is_utf8(whole) else ["bytes that are not UTF-8"]
    if bad:
        remedy = "the shell has left it as it is: give the whole path" if "~" in bad else remedy
        raise UserError(f"{flag}={whole!r} has {' and '.join(bad)} in its path; {remedy}")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Replace the file at `path` by one that holds `text`; raise `OSError` and leave it as it was if that fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = os.fspath(path)  # A full disk does not say which file it was full for.
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def writing(what: str | os.PathLike[str], remedy: str = "choose another directory") -> Iterator[None]:
    """Turn an `OSError` of the block into one line that names `what`, or the file below it where the error does.

    Raises:
      RunFailed: the disk is full.
      UserError: whatever else there is, with its remedy.
    """
    try:
        yield
    except OSError as error:
        file, what = str(error.filename2 or error.filename), os.fspath(what)
        why = f"cannot write {file if file.startswith(what) else what}: {error.strerror or error}"
        if error.errno in FULL:
            raise RunFailed(f"{why}; free some space and start again") from error
        raise UserError(f"{why}; {remedy}") from error


def write_result(path: pathlib.Path, text: str) -> None:
    """Write a file that the user asked for, with its directory; raise as `writing` where that fails."""
    with writing(path, "choose another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a result as indented JSON; raise as `writing` where that fails."""
    write_result(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def new_directory(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a directory to fill, which is `output` once the block has ended well and is removed if it has not.

    Until then it is hidden beside `output`; what a killed process left there is removed by the next one.

    Raises:
      UserError: there is something at `output`, another process is making it, or it cannot be written.
      RunFailed: the disk is full.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists and is never overwritten; remove it, or choose another directory")
    partial = output.with_name(f".{output.name}.partial")
    with writing(output):
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            _lock(lock, output)
            _empty(partial)
            try:
                yield partial
                os.rename(partial, output)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(lock)


def _lock(directory: int, output: pathlib.Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{output} is being written by another process; wait for it or end it") from error


def _empty(directory: pathlib.Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
