"""Shards of JSON lines, plain or compressed: their documents, and how much of them could not be read."""

import codecs
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from stagjax.data.compression import Content, Problem
from stagjax.data.faults import (
    EMPTY,
    NO_TEXT,
    NOT_A_STRING,
    NOT_JSON,
    NOT_UTF8,
    SURROGATE,
    TRUNCATED_FILE,
    Fault,
)
from stagjax.printable import one_line

# Bytes read at a time: with what follows a damaged place, up to so many bytes before it are lost too.
_READ = 1 << 17


@dataclasses.dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
      name: unique in its source, and the same on every machine.
      text: what there is to read.
      subset: the part of the corpus that it belongs to, "" where there are none (The Pile: `meta.pile_set_name`).
    """

    name: str
    text: str
    subset: str = ""


class BrokenLine(ValueError):
    """A line without a text.

    Attributes:
      kind: of the fault.
    """

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind = kind


class ShardReader:
    """The documents of one shard, named "shard#line"; blank lines are passed over.

    All bytes of the file are read whatever is wrong with them, so that `sha256` is that of the file.

    Args:
      name: of the shard, whose end says how it is compressed.
      file: open for reading bytes, from its beginning.
      report: called with every fault.
      advance: called with the number of bytes that were read since it was last called.

    Attributes (complete once `documents` has been walked to its end):
      num_lines: that are not blank.
      num_broken: lines among them that gave no document.
      content: what of the file could be read. A file whose last line ends in the middle was cut off, and counts whole.
    """

    def __init__(
        self,
        name: str,
        file: IO[bytes],
        report: Callable[[Fault], None],
        advance: Callable[[int], None] = lambda num_bytes: None,
    ):
        self.name = name
        self._file, self._report, self._advance = file, report, advance
        self._hash = hashlib.sha256()
        self.num_lines = self.num_broken = 0
        self.content = Content(name, self._chunks())

    @property
    def sha256(self) -> str:
        """Of the file's bytes, in hexadecimal."""
        return self._hash.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Yield the documents; raise `OSError` where the file cannot be read."""
        number, pending = 0, b""  # Of the last whole line, and what is behind it.
        for text in self.content:
            *lines, pending = (pending + text).split(b"\n")
            for line in lines:
                number += 1
                yield from self._document(number, line)
        if self.content.problem is None:
            yield from self._document(number + 1, pending, is_ended=False)
        else:
            kind, detail = self.content.problem
            self._report(Fault(kind, self.name, f"{detail} after line {number}; the rest is lost"))

    def _document(self, number: int, line: bytes, is_ended: bool = True) -> Iterator[Document]:
        line = line.removeprefix(codecs.BOM_UTF8)  # Of the file, or of one that was put behind another.
        if not line or line.isspace():
            return
        self.num_lines += 1
        try:
            text, subset = parse_line(line)
        except BrokenLine as error:
            kind, detail = error.kind, str(error)
            if not is_ended and kind in (NOT_JSON, NOT_UTF8):
                kind, detail = TRUNCATED_FILE, f"the file ends in the middle of a line, {detail}"
                self.content.give_up(Problem(kind, detail))
            self.num_broken += 1
            self._report(Fault(kind, f"{self.name}:{number}", detail))
        else:
            yield Document(f"{self.name}#{number}", text, subset)

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._file.read(_READ):
            self._hash.update(chunk)
            self._advance(len(chunk))
            yield chunk


def parse_line(line: bytes) -> tuple[str, str]:
    """Return text and subset of a JSON line, {"text": ..., "meta": {"pile_set_name": ...}}; the latter may be missing.

    Raises:
      BrokenLine: there is no text.
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BrokenLine(NOT_UTF8, f"not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        # ValueError besides its JSONDecodeError: an integer of thousands of digits.
        raise BrokenLine(NOT_JSON, f"not JSON ({error})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        absent = not isinstance(record, dict) or "text" not in record
        raise BrokenLine(NO_TEXT if absent else NOT_A_STRING, 'not an object with a string "text"')
    if not text:
        raise BrokenLine(EMPTY, '"text" is empty')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BrokenLine(SURROGATE, '"text" has half of a surrogate pair, which is not Unicode text') from None
    return text, subset_of(record.get("meta"))


NO_SUBSET = "(no subset)"


def subset_label(subset: str) -> str:
    """Return what stands for a subset where people read; one that is called like the documents of none is quoted."""
    return (repr(subset) if subset == NO_SUBSET else one_line(subset)) or NO_SUBSET


def subset_of(meta: Any) -> str:
    """Return the subset that `meta` of a record names, "" where it names none.

    Some copies of The Pile have `meta` as JSON in a string, which is read as what it holds. What is no object, or names
    its subset by anything but a string, names none.
    """
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except (ValueError, RecursionError):
            return ""
    subset = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return subset.encode(errors="replace").decode() if isinstance(subset, str) else ""
