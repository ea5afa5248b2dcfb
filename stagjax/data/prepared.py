"""A directory of prepared data: what lies where, what it was made from, and its rows for training."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stagjax.config import DataConfig
from stagjax.data.faults import Faults
from stagjax.data.manifest import Manifest
from stagjax.data.row_files import RowFile, StoredRows
from stagjax.data.vocabulary import Vocabulary, load_vocabulary
from stagjax.errors import UserError

FORMAT = 1
PLAN, PREPARED, REPORT, VOCABULARY = "plan.json", "prepared.json", "report.json", "vocabulary.model"
ROWS, DOCUMENTS, RECEIPTS = "rows", "documents", "shards"
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
      expected_bytes: as in `shards.ShardReader`.
      lost_bytes: likewise.
      frames: zstd frames.
      unchecked: of them, those without a checksum.
      faults: as `Faults.to_dict`.
      parts: by split.
    """

    name: str
    size: int
    sha256: str
    lines: int
    broken: int
    expected_bytes: int
    lost_bytes: int
    frames: int
    unchecked: int
    faults: dict[str, Any]
    parts: dict[str, Part]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Receipt":
        """Return the receipt that `dataclasses.asdict` gave, also by way of JSON."""
        return cls(**{**tree, "parts": {split: Part.from_dict(part) for split, part in tree["parts"].items()}})


class Broken(NamedTuple):
    """How much of the input is broken.

    Attributes:
      documents: share of the lines read that gave no document.
      bytes: share of the bytes of all shards that could not be read or trusted.
      faults: all of them.
    """

    documents: float
    bytes: float
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
    expected = sum(receipt.expected_bytes for receipt in receipts)
    return Broken(
        sum(receipt.broken for receipt in receipts) / max(1, lines),
        sum(receipt.lost_bytes for receipt in receipts) / max(1, expected),
        faults,
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A complete directory.

    Attributes:
      root: the directory.
      vocabulary_name: for people.
      vocabulary_fingerprint: of the vocabulary that made the rows.
      row_length: T.
      validation_percent: of documents held out; 0 where validation has files of its own.
      receipts: of all shards, in the order of their names.
    """

    root: pathlib.Path
    vocabulary_name: str
    vocabulary_fingerprint: str
    row_length: int
    validation_percent: int
    receipts: list[Receipt]

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of all subsets of the splits whose rows belong to one each, sorted."""
        parts = [*self.parts("validation"), *self.parts("test")]
        return tuple(sorted({name for part in parts for name in part.subsets}))

    @property
    def vocabulary_spec(self) -> str:
        """For `vocabulary.load_vocabulary`."""
        own = self.root / VOCABULARY
        return str(own) if own.exists() else "bytes"

    @property
    def files(self) -> Iterator[StoredFile]:
        """All files of rows and documents."""
        for receipt in self.receipts:
            for part in receipt.parts.values():
                yield from part.files

    def parts(self, split: str) -> list[Part]:
        """Return what each shard gave to a split, in the order of the shards' names."""
        return [receipt.parts[split] for receipt in self.receipts if split in receipt.parts]

    def rows(self, split: str) -> StoredRows:
        """Return the rows of a split, "train", "validation" or "test": the shards' in the order of their names."""
        subsets = self.subsets
        files = [
            RowFile(
                self.root / part.row_file.name,
                part.rows,
                part.tokens,
                part.documents,
                () if split == "train" else tuple(subsets.index(name) for name in part.subsets),
            )
            for part in self.parts(split)
        ]
        return StoredRows(files, self.row_length, single_subset=split != "train")

    def manifest(self) -> Manifest:
        """Return the identity of the rows, from the hashes that were taken when they were written."""
        return Manifest(
            source="prepared",
            vocabulary_name=self.vocabulary_name,
            vocabulary_fingerprint=self.vocabulary_fingerprint,
            row_length=self.row_length,
            validation_percent=self.validation_percent,
            **self._identity("train"),
            **self._identity("validation"),
        )

    def _identity(self, split: str) -> dict[str, Any]:
        parts = self.parts(split)
        return {
            f"{split}_documents": sum(part.documents for part in parts),
            f"{split}_bytes": sum(part.bytes for part in parts),
            f"{split}_content_hash": _hash_of_hashes(part.content_hash for part in parts),
            f"{split}_rows_hash": _hash_of_hashes(part.row_file.sha256 for part in parts),
        }


def open_prepared(path: str, field: str = "data.path") -> Prepared:
    """Return the directory at `path`, all of whose files are there with the sizes that were recorded.

    Args:
      path: the directory.
      field: that names it, for messages.

    Raises:
      UserError: it is not a directory of prepared data, is not complete, or a file is missing or has another size.
    """
    root = pathlib.Path(path)
    tree = _read(root, field)
    try:
        receipts = [Receipt.from_dict(receipt) for receipt in tree["receipts"]]
        prepared = Prepared(root, **tree["settings"], receipts=receipts)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{field}={path}: {PREPARED} is damaged ({error!r}); prepare the data again") from None
    for file in prepared.files:
        found = _size(root / file.name)
        # Documents are for other readers: rows are all that training needs, and may be moved without them.
        if found != file.size and (found is not None or file.name.startswith(ROWS)):
            state = "is missing" if found is None else f"has {found:,} bytes, not {file.size:,}"
            raise UserError(
                f"{field}={path}: {file.name} {state}; put it back, or run the `stagjax data prepare` that made it"
            )
    return prepared


def open_vocabulary(config: DataConfig) -> Vocabulary:
    """Return the vocabulary of an experiment's data; raises as `vocabulary_spec` and `load_vocabulary`."""
    return load_vocabulary(vocabulary_spec(config))


def vocabulary_spec(config: DataConfig) -> str:
    """Return "bytes" or a path: what `data.vocabulary` names, "prepared" being that of the prepared directory.

    Raises:
      UserError: the prepared directory cannot be used.
    """
    if config.vocabulary != "prepared":
        return config.vocabulary
    return open_prepared(config_path(config)).vocabulary_spec


def config_path(config: DataConfig) -> str:
    """Return `data.path`; raise `UserError` where it is not set."""
    if config.path is None:
        raise UserError(
            "data.path is not set, but data.source='prepared' reads a directory made by `stagjax data prepare`; "
            "add --config.data.path=DIR"
        )
    return config.path


def check_use(prepared: Prepared, config: DataConfig, vocabulary: Vocabulary) -> None:
    """Raise `UserError` where an experiment wants other rows than a directory holds."""
    if config.row_length != prepared.row_length:
        raise UserError(
            f"data.row_length={config.row_length}, but the rows of data.path={prepared.root} have "
            f"{prepared.row_length} ids; use that, or prepare the data with --row-length={config.row_length}"
        )
    if vocabulary.fingerprint != prepared.vocabulary_fingerprint:
        raise UserError(
            f"data.vocabulary={config.vocabulary!r} is not the vocabulary that made the rows of "
            f"data.path={prepared.root}; use data.vocabulary='prepared', which is that one"
        )


def verify(prepared: Prepared, advance: Callable[[int], None] = lambda num_bytes: None) -> list[str]:
    """Return "file: what is wrong" for every file whose bytes are not those that were written.

    Args:
      prepared: the directory.
      advance: called with the number of bytes that were read since it was last called.
    """
    wrong = []
    for file in prepared.files:
        path = prepared.root / file.name
        if not path.exists():
            if file.name.startswith(ROWS):
                wrong.append(f"{file.name}: missing")
        elif sha256_of(path, advance) != file.sha256:
            wrong.append(f"{file.name}: not the bytes that were written")
    vocabulary = load_vocabulary(prepared.vocabulary_spec)
    if vocabulary.fingerprint != prepared.vocabulary_fingerprint:
        wrong.append(f"{VOCABULARY}: not the vocabulary that made the rows")
    return wrong


def sha256_of(path: pathlib.Path, advance: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _read(root: pathlib.Path, field: str) -> dict[str, Any]:
    make = "give a directory made by `stagjax data prepare`"
    if not root.is_dir():
        raise UserError(f"{field}={root} {'is not a directory' if root.exists() else 'does not exist'}; {make}")
    try:
        tree = json.loads((root / PREPARED).read_text())
    except FileNotFoundError:
        if (root / PLAN).exists():
            raise UserError(
                f"{field}={root} is not complete: a `stagjax data prepare` was stopped there; run it again to the end"
            ) from None
        raise UserError(f"{field}={root} holds no prepared data; {make}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{field}={root}: {PREPARED} cannot be read ({error}); prepare the data again") from None
    if tree.get("format") != FORMAT:
        raise UserError(
            f"{field}={root} has format {tree.get('format')}, and this version of stagjax reads {FORMAT}; "
            "prepare the data again, in another directory"
        )
    return tree


def _size(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _hash_of_hashes(hashes: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
