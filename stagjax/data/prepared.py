"""A directory of prepared data: what lies where, what it was made from, and its rows for training."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from stagjax.config import DataConfig
from stagjax.data.manifest import Manifest
from stagjax.data.receipts import Part, Receipt, StoredFile, sha256_of
from stagjax.data.row_files import RowFile, StoredRows
from stagjax.data.vocabulary import Vocabulary, load_vocabulary
from stagjax.errors import UserError
from stagjax.files import read_json

FORMAT = 1
PLAN, PREPARED, REPORT, VOCABULARY = "plan.json", "prepared.json", "report.json", "vocabulary.model"
ROWS, DOCUMENTS, RECEIPTS = "rows", "documents", "shards"


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


def _read(root: pathlib.Path, field: str) -> dict[str, Any]:
    make = "give a directory made by `stagjax data prepare`"
    if not root.is_dir():
        raise UserError(f"{field}={root} {'is not a directory' if root.exists() else 'does not exist'}; {make}")
    try:
        tree = read_json(root / PREPARED, "prepare the data again")
    except FileNotFoundError:
        if (root / PLAN).exists():
            raise UserError(
                f"{field}={root} is not complete: a `stagjax data prepare` was stopped there; run it again to the end"
            ) from None
        raise UserError(f"{field}={root} holds no prepared data; {make}") from None
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
