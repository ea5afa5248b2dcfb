"""Receipts: what was made of each shard of a corpus, file by file, and what was broken in it."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stagjax.data.faults import Faults

_HASHED = 1 << 22  # Bytes at a time.


class StoredFile(NamedTuple):
    """A file of the directory.

    Attributes:
      name: relative to the directory.
      size: in bytes.
      sha256: of its bytes, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Part:
    """What one shard gave to one split.

    Attributes:
      documents: how many.
      bytes: of their texts, in UTF-8.
      tokens: with an EOS for each document.
      rows: packed from them alone.
      content_hash: sha256 of names and texts, in order, as `manifest.ContentHash`.
      subsets: documents of each subset, in the order of the indices that rows hold.
      row_file: the rows.
      document_file: the texts; None where only rows were asked for.
    """

    documents: int
    bytes: int
    tokens: int
    rows: int
    content_hash: str
    subsets: dict[str, int]
    row_file: StoredFile
    document_file: StoredFile | None

    @property
    def files(self) -> list[StoredFile]:
        """All files."""
        return [self.row_file, *([self.document_file] if self.document_file else [])]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Part":
        """Return the part that `dataclasses.asdict` gave, also by way of JSON."""
        texts = tree["document_file"]
        files = {"row_file": StoredFile(*tree["row_file"]), "document_file": texts and StoredFile(*texts)}
        return cls(**{**tree, **files})


@dataclasses.dataclass(frozen=True)
class Receipt:
    """That a shard is done, and what came of it.

    Attributes:
      name: of the shard.
      size: of its file, in bytes.
      sha256: of its file, as it was read.
      lines: that are not blank.
      broken: of them, those that gave no document.
      content_bytes: of the file as it should be, decompressed; None where nothing says how much that is.
      lost_share: of them, how much could not be read or not be trusted, as in `compression.Content`.
      frames: zstd frames or gzip members.
      unchecked: of them, those without a checksum.
      faults: as `Faults.to_dict`.
      parts: by split.
    """

    name: str
    size: int
    sha256: str
    lines: int
    broken: int
    content_bytes: int | None
    lost_share: float
    frames: int
    unchecked: int
    faults: dict[str, Any]
    parts: dict[str, Part]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Receipt":
        """Return the receipt that `dataclasses.asdict` gave, also by way of JSON."""
        parts = {split: Part.from_dict(part) for split, part in tree["parts"].items()}
        fields = {**tree, "parts": parts}
        if "lost_bytes" in fields:  # Of an earlier version, which counted the bytes of the file as it is.
            lost, expected = fields.pop("lost_bytes"), fields.pop("expected_bytes")
            fields["lost_share"] = lost / max(1, expected)
            fields["content_bytes"] = None if 0 < expected <= lost else sum(part.bytes for part in parts.values())
        return cls(**fields)


class Broken(NamedTuple):
    """How much of the input is broken.

    Attributes:
      documents: share of the lines read that gave no document.
      bytes: share of the bytes of all shards, decompressed, that could not be read or trusted.
      by_split: the same share of the shards that give to a split, for each.
      faults: all of them.
    """

    documents: float
    bytes: float
    by_split: dict[str, float]
    faults: Faults

    @property
    def share(self) -> float:
        """The two together: a document is counted where it is broken, or where it is lost."""
        return self.documents + self.bytes


def broken_share(receipts: Sequence[Receipt]) -> Broken:
    """Return how much of the input of some shards is broken."""
    faults = Faults()
    for receipt in receipts:
        faults.merge(Faults.from_dict(receipt.faults))
    lines = sum(receipt.lines for receipt in receipts)
    sizes = _content_sizes(receipts)
    splits = {split for receipt in receipts for split in receipt.parts}
    return Broken(
        sum(receipt.broken for receipt in receipts) / max(1, lines),
        _lost([(size, receipt.lost_share) for size, receipt in zip(sizes, receipts, strict=True)]),
        {
            split: _lost([(size, r.lost_share) for size, r in zip(sizes, receipts, strict=True) if split in r.parts])
            for split in sorted(splits)
        },
        faults,
    )


def _content_sizes(receipts: Sequence[Receipt]) -> list[float]:
    """Return the bytes that each shard should hold; what does not say so is taken for no smaller than the others."""
    known = [receipt for receipt in receipts if receipt.content_bytes is not None]
    total = sum(receipt.content_bytes for receipt in known)
    mean, rate = total / max(1, len(known)), total / max(1, sum(receipt.size for receipt in known))
    return [max(1.0, mean, r.size * rate) if r.content_bytes is None else r.content_bytes for r in receipts]


def _lost(shards: Sequence[tuple[float, float]]) -> float:
    return sum(size * share for size, share in shards) / max(1, sum(size for size, _ in shards))


def sha256_of(path: pathlib.Path, advance: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
