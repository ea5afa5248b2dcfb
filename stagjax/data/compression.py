"""What a file holds, plain or compressed by zstd or gzip, and how much of that cannot be read or not be trusted."""

import contextlib
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stagjax.data.faults import CHECKSUM, DAMAGED, DAMAGED_GZIP, TRUNCATED, TRUNCATED_FILE, TRUNCATED_GZIP

ZSTD, GZIP = (".zst", ".zstd"), (".gz",)
COMPRESSED = (*ZSTD, *GZIP)
# The Pile was compressed with long-distance matching, beyond the default limit of the window.
_LARGEST_WINDOW = 1 << 31
_LONGEST_HEADER = 18  # Of a zstd frame, in bytes (RFC 8878, section 3.1.1).
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # Magic numbers of frames without content (the same, section 3.1.2).
_SKIPPABLE_HEADER = 8


class Problem(NamedTuple):
    """Why the content ends early.

    Attributes:
      kind: of the fault, as `faults` names them.
      detail: what it is, for people.
    """

    kind: str
    detail: str


class Content:
    """The content of a file, to be walked once: all of its bytes are taken whatever is wrong with them.

    Args:
      name: of the file; what ends in none of `COMPRESSED` is taken as it is.
      chunks: its bytes.

    Attributes (complete once it has been walked to its end):
      problem: why the content ends early, if it does.
      num_bytes: of the file.
      num_produced: bytes of the content that could be read.
      size: bytes of the content as it should be, an estimate where a part is damaged; None where nothing says it.
      lost_share: how much of the content cannot be read or not be trusted. Of a frame that is cut off, what is missing
        by the size that its header states; all of the file where it states none, as gzip never does, or where others
        come before it, so that others may have come behind it; from a damaged frame on, all.
      num_frames: zstd frames with content, or gzip members; 0 for a plain file.
      num_unchecked: frames without a checksum, whose content can have changed unseen.
    """

    def __init__(self, name: str, chunks: Iterable[bytes]):
        self._name, self._chunks = name, chunks
        self.problem: Problem | None = None
        self.num_bytes = self.num_produced = self.num_frames = self.num_unchecked = 0
        self.size: int | None = None
        self.lost_share = 0.0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the content up to what is wrong with it."""
        for text in self._frames() if self._name.endswith(COMPRESSED) else self._counted():
            self.num_produced += len(text)
            yield text
        if not self.num_bytes:
            self.give_up(Problem(_kinds(self._name)[0], "the file is empty"))
        elif self.problem is None:
            self.size = self.num_produced

    def give_up(self, problem: Problem) -> None:
        """Note that all of the file counts as lost, and that nothing says how much that is."""
        self.problem, self.lost_share, self.size = problem, 1.0, None

    def _counted(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.num_bytes += len(chunk)
            if chunk:
                yield chunk

    def _frames(self) -> Iterator[bytes]:
        """Yield the content of frames, one after the other.

        Not by a library's reader of streams: those take a file that ends in the middle of a frame for a complete one.
        """
        frame, data, chunks, chunk = None, b"", self._counted(), b"-"
        while chunk:
            chunk = next(chunks, b"")
            data += chunk
            while data and (frame or not chunk or len(data) >= _LONGEST_HEADER):
                if frame is None:
                    frame, place, before = _begun(self._name, data), self.num_bytes - len(data), self.num_produced
                try:
                    text, data = frame.decompress(data)
                except _Damaged as error:
                    for _ in chunks:
                        pass  # The rest is read for the file's hash and size alone.
                    self._damaged(error, place, before)
                    return
                yield text
                if frame.is_whole:
                    self.num_frames += frame.has_content
                    self.num_unchecked += not frame.has_checksum
                    frame = None
        if frame is not None:
            self._cut(frame)

    def _damaged(self, error: "_Damaged", place: int, before: int) -> None:
        """Take for lost what lies behind `place` of the file, at the rate of the `before` bytes that lie before it."""
        self.problem = Problem(error.kind, f"{error.kind} ({error})")
        self.lost_share = (self.num_bytes - place) / self.num_bytes
        self.size = round(before * self.num_bytes / place) if before else None

    def _cut(self, frame: "_Frame") -> None:
        kind, noun = _kinds(self._name)
        if frame.content_size is None or self.num_frames:  # One of many says nothing of those that came behind it.
            self.give_up(Problem(kind, f"the {noun} is cut off"))
            return
        self.size = max(1, frame.content_size)
        missing = max(1, self.size - self.num_produced)  # Its checksum, where all else is there.
        self.lost_share = missing / self.size
        self.problem = Problem(kind, f"the {noun} is cut off")


def _kinds(name: str) -> tuple[str, str]:
    """Return the kind of fault where a file is cut off, and what is cut off."""
    if name.endswith(COMPRESSED):
        return (TRUNCATED_GZIP, "gzip member") if name.endswith(GZIP) else (TRUNCATED, "zstd frame")
    return TRUNCATED_FILE, "file"


class _Damaged(ValueError):
    """A frame cannot be decompressed."""

    def __init__(self, kind: str, detail: object):
        super().__init__(str(detail))
        self.kind = kind


class _Frame:
    """A part of a compressed file that stands by itself, while it is read.

    Attributes:
      content_size: bytes that it holds, None where it does not say so at its beginning.
      has_content: whether it is there for its content.
      has_checksum: of its content, which is compared at its end.
      is_whole: whether its end was reached.
    """

    content_size: int | None = None
    has_content = has_checksum = True
    is_whole = False

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what `data` holds, and what of `data` is behind the frame's end; raise `_Damaged`."""
        raise NotImplementedError


def _begun(name: str, data: bytes) -> _Frame:
    """Return the frame that begins with `data`, which has all of its header unless the file ends before."""
    if name.endswith(GZIP):
        return _GzipMember() if data[:1] != b"\0" else _Padding()
    return _Skippable() if int.from_bytes(data[:4], "little") in _SKIPPABLE else _ZstdFrame(data)


class _ZstdFrame(_Frame):
    def __init__(self, header: bytes):
        import zstandard  # Here, because most corpora do without.

        self._error, self.has_checksum = zstandard.ZstdError, False
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
        with contextlib.suppress(zstandard.ZstdError):  # What is no header fails again when it is decompressed.
            found = zstandard.get_frame_parameters(header)
            self.has_checksum = bool(found.has_checksum)
            if found.content_size != zstandard.CONTENTSIZE_UNKNOWN:
                self.content_size = found.content_size

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        try:
            text = self._decompressor.decompress(data)
        except self._error as error:
            raise _Damaged(CHECKSUM if "checksum" in str(error) else DAMAGED, error) from None
        self.is_whole = self._decompressor.eof
        return text, self._decompressor.unused_data if self.is_whole else b""


class _Skippable(_Frame):
    """A zstd frame without content, as pzstd writes before each and other tools at the end."""

    has_content = False

    def __init__(self):
        self._header, self._left = b"", 0

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        if len(self._header) < _SKIPPABLE_HEADER:
            missing = _SKIPPABLE_HEADER - len(self._header)
            self._header, data = self._header + data[:missing], data[missing:]
            self._left = int.from_bytes(self._header[4:], "little")
        skipped = min(self._left, len(data))
        self._left -= skipped
        self.is_whole = len(self._header) == _SKIPPABLE_HEADER and not self._left
        return b"", data[skipped:]


class _GzipMember(_Frame):
    def __init__(self):
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        try:
            text = self._decompressor.decompress(data)
        except zlib.error as error:
            checked = "incorrect data check" in str(error) or "incorrect length check" in str(error)
            raise _Damaged(CHECKSUM if checked else DAMAGED_GZIP, str(error).rpartition(": ")[2]) from None
        self.is_whole = self._decompressor.eof
        return text, self._decompressor.unused_data


class _Padding(_Frame):
    """Zeros between or behind gzip members, as tapes leave them and every tool passes over."""

    has_content, is_whole = False, True

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        return b"", data.lstrip(b"\0")
