"""Finished work, kept by what it depends on and never by a name: one file a cell, and a log that grows as it is made.

DIR/KEY.json   the result of a finished cell, written whole
DIR/KEY.jsonl  its log: a line a document, appended in portions; locked by the process that works on it

A cell is one task of one model, decoded in one way. Its key is a hash of the model's content, of everything that is
asked, and of the settings that decide answers, so another checkpoint, file or prompt has another key.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from stagjax.errors import RunFailed, UserError
from stagjax.files import write_whole
from stagjax.fingerprint import digest

SEMANTICS = 2
"""Version of how answers are computed and scored: raise it when the same requests may get other results."""


def cell_key(content: str, vocabulary: str, questions: str, settings: Mapping[str, Any]) -> str:
    """Return the key of a cell.

    Args:
      content: of the checkpoint: its parameters and its model's config (`saving.content_key`).
      vocabulary: its fingerprint.
      questions: fingerprint of all that is asked.
      settings: whatever else decides answers.
    """
    parts = {"model": content, "vocabulary": vocabulary, "questions": questions, "settings": dict(settings)}
    return digest({"semantics": SEMANTICS, **parts})[:32]


class NotKept(RunFailed):
    """Nothing can be written any more: unlike other failures of a cell, this one ends the whole run."""


class Cells:
    """The cells of a directory.

    Args:
      directory: made where it is missing.

    Raises:
      UserError: it cannot be written.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {directory}: {error.strerror}; choose another --output") from error

    def read(self, key: str) -> dict[str, Any] | None:
        """Return a finished cell's result; None where there is none, or none that is whole."""
        try:
            result = json.loads(self._result(key).read_text(encoding="utf-8"))
            stated = result.pop("digest")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return result if stated == digest(result) and result["key"] == key else None

    def log_path(self, key: str) -> pathlib.Path:
        """Return where the log of a cell is."""
        return self.directory / f"{key}.jsonl"

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator["Log | None"]:
        """Hold a cell while working on it; yield its log, or None where another process works on it.

        The claim is a lock of the log, which ends with the process, however that ends. Where the file system has no
        locks nothing is claimed: then two processes may do the same work, whose results are equal.
        """
        with _failing(self.directory), open(self.log_path(key), "a+", encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    yield None
                    return
            yield Log(file)

    def finish(self, key: str, result: Mapping[str, Any]) -> None:
        """Write the result of a cell whose log is whole; raise `NotKept` where that fails."""
        whole = {"key": key, **result}
        with _failing(self.directory):
            write_whole(self._result(key), json.dumps(whole | {"digest": digest(whole)}, indent=1) + "\n")

    def _result(self, key: str) -> pathlib.Path:
        return self.directory / f"{key}.json"


class Log:
    """Lines of a cell, kept portion by portion."""

    def __init__(self, file: TextIO):
        self._file = file

    def lines(self, portions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the lines of the whole portions that are there, and cut off what comes behind them.

        Args:
          portions: the number of lines of each.
        """
        self._file.seek(0)
        ends, found = [0], []
        while line := self._file.readline():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                break  # half a line: its writer was killed; or it is damaged
            if not line.endswith("\n") or not isinstance(found[-1], dict):
                found.pop()
                break
            ends.append(self._file.tell())
        whole = 0
        for size in portions:
            if whole + size > len(found):
                break
            whole += size
        self._file.truncate(ends[whole])
        return found[:whole]

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add the lines of a portion, and wait until they are on the disk; raise `NotKept` where that fails."""
        with _failing(pathlib.Path(self._file.name).parent):
            self._file.write("".join(json.dumps(line) + "\n" for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def _failing(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotKept(
            f"cannot write to {directory}: {error.strerror or error}; what is finished is kept, start again"
        ) from error
