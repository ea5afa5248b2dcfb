"""Shards of JSON lines, plain or compressed by zstd: their documents, and how much of them could not be read."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import IO

from stagjax.data.faults import (
    CHECKSUM,
    DAMAGED,
    EMPTY,
    NO_TEXT,
    NOT_A_STRING,
    NOT_JSON,
    NOT_UTF8,
    SURROGATE,
    TRUNCATED,
    Fault,
)

# Bytes read at a time: with what follows a damaged place, up to so many bytes before it are lost too.
_READ = 1 << 17
# The Pile was compressed with long-distance matching, beyond the default limit of the window.
_LARGEST_WINDOW = 1 << 31
_LONGEST_HEADER = 18  # of a zstd frame, in bytes (RFC 8878, section 3.1.1)


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
      name: of the shard; what ends in ".zst" is taken for zstd.
      file: open for reading bytes, from its beginning.
      report: called with every fault.
      advance: called with the number of bytes that were read since it was last called.

    Attributes (complete once `documents` has been walked to its end):
      num_lines: that are not blank.
      num_broken: lines among them that gave no document.
      num_bytes: of the file.
      lost_bytes: of the file as it should be, how many cannot be read or not be trusted: of a frame that is cut off,
        what is missing (all of the file where the frame does not say how long it is); from a damaged frame on, all.
      expected_bytes: of the file as it should be; an estimate where it is cut off.
      num_frames: zstd frames; 0 for a plain file.
      num_unchecked: frames without a checksum, whose texts can have changed unseen.
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
        self.num_lines = self.num_broken = self.num_bytes = self.lost_bytes = 0
        self.expected_bytes = self.num_frames = self.num_unchecked = self._trusted_bytes = 0
        self._fault: tuple[str, str] | None = None

    @property
    def sha256(self) -> str:
        """Of the file's bytes, in hexadecimal."""
        return self._hash.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Yield the documents; raise `OSError` where the file cannot be read."""
        number, pending = 0, b""  # Of the last whole line, and what is behind it.
        for text in self._decompressed() if self.name.endswith(".zst") else self._chunks():
            *lines, pending = (pending + text).split(b"\n")
            for line in lines:
                number += 1
                yield from self._document(number, line)
        if self._fault is None:
            yield from self._document(number + 1, pending)
        else:
            kind, detail = self._fault
            self._report(Fault(kind, self.name, f"{detail} after line {number}; the rest is lost"))
        self.expected_bytes = self.expected_bytes or self.num_bytes

    def _document(self, number: int, line: bytes) -> Iterator[Document]:
        if not line or line.isspace():
            return
        self.num_lines += 1
        try:
            text, subset = parse_line(line)
        except BrokenLine as error:
            self.num_broken += 1
            self._report(Fault(error.kind, f"{self.name}:{number}", str(error)))
        else:
            yield Document(f"{self.name}#{number}", text, subset)

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._file.read(_READ):
            self._hash.update(chunk)
            self.num_bytes += len(chunk)
            self._advance(len(chunk))
            yield chunk

    def _decompressed(self) -> Iterator[bytes]:
        """Yield the content of zstd frames, one after the other, up to a fault.

        Not by `stream_reader`: that one takes a file which ends in the middle of a frame for a complete one.
        """
        import zstandard  # Here, because most corpora do without.

        frame, data = None, b""
        for chunk in itertools.chain(self._chunks(), [b""]):
            # After a fault the rest is read for its hash alone.
            data = data + chunk if self._fault is None else b""
            while data and (frame or not chunk or len(data) >= _LONGEST_HEADER):
                frame = frame or _Frame(data, self.num_bytes - len(data))
                try:
                    text, data = frame.decompress(data)
                except zstandard.ZstdError as error:
                    kind = CHECKSUM if "checksum" in str(error) else DAMAGED
                    self._fault, self._trusted_bytes, data = (kind, f"{kind} ({error})"), frame.begin, b""
                    break
                yield text
                if frame.is_whole:
                    self.num_frames += 1
                    self.num_unchecked += not frame.has_checksum
                    frame = None
        if self._fault is not None:
            self.lost_bytes = self.num_bytes - self._trusted_bytes
        elif frame is not None or not self.num_bytes:
            self._fault = (TRUNCATED, "the zstd frame is cut off" if self.num_bytes else "the file is empty")
            self.lost_bytes = self._missing(frame)

    def _missing(self, frame: "_Frame | None") -> int:
        """Return how many bytes of the file are missing where `frame` is cut off."""
        if frame is None or not frame.content_size or not frame.num_produced:
            return self.num_bytes  # Nothing says how much it is: all of the file counts.
        share = 1 - frame.num_produced / frame.content_size
        missing = max(1, round(share / (1 - share) * (self.num_bytes - frame.begin)))
        self.expected_bytes = self.num_bytes + missing
        return missing


class _Frame:
    """A zstd frame while it is read.

    Attributes:
      begin: its place in the file, in bytes.
      content_size: bytes that it holds, 0 where its header does not say it.
      num_produced: bytes of them so far.
      has_checksum: of its content, which is compared at its end.
    """

    def __init__(self, data: bytes, begin: int):
        import zstandard

        self.begin, self.content_size, self.num_produced, self.has_checksum = begin, 0, 0, False
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
        with contextlib.suppress(zstandard.ZstdError):  # What is no header fails again when it is decompressed.
            header = zstandard.get_frame_parameters(data)
            self.has_checksum = bool(header.has_checksum)
            if header.content_size != zstandard.CONTENTSIZE_UNKNOWN:
                self.content_size = header.content_size

    @property
    def is_whole(self) -> bool:
        """Whether its end was reached."""
        return self._decompressor.eof

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what `data` holds, and what of `data` is behind the frame's end."""
        text = self._decompressor.decompress(data)
        self.num_produced += len(text)
        return text, self._decompressor.unused_data if self.is_whole else b""


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
    meta = record.get("meta")
    subset = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return text, subset.encode(errors="replace").decode() if isinstance(subset, str) else ""
