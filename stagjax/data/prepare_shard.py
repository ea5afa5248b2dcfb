"""One shard prepared: its documents and its packed rows, in a single pass over the source."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from stagjax.data.faults import Fault, Faults
from stagjax.data.layout import Shard, open_shard
from stagjax.data.manifest import ContentHash
from stagjax.data.packing import RowPacker
from stagjax.data.prepared import DOCUMENTS, RECEIPTS, ROWS
from stagjax.data.receipts import Part, Receipt, StoredFile, sha256_of
from stagjax.data.row_files import RowWriter
from stagjax.data.shards import Document, ShardReader
from stagjax.data.sources import split_of
from stagjax.data.vocabulary import EOS, Vocabulary
from stagjax.errors import RunFailed, UserError
from stagjax.files import write_whole

PARTIAL = ".partial"
_ALL_BROKEN = 1000  # Lines after which a shard without a single document is not looked at further.


class DocumentWriter(Protocol):
    """Writes documents to one file."""

    def write(self, document: Document) -> None:
        """Append one."""

    def close(self) -> None:
        """Write what is left."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to be prepared.

    Attributes:
      shard: which.
      output: directory of the prepared data.
      places: for each split that the shard gives to, its number among the shards that do, and how many they are.
      row_length: T.
      validation_percent: of documents held out, where the shard itself is of no split.
      expected_sha256: of the shard's file, None where it is not known.
      documents: opens the writer of a file of documents; None for rows alone.
    """

    shard: Shard
    output: pathlib.Path
    places: dict[str, tuple[int, int]]
    row_length: int
    validation_percent: int
    expected_sha256: str | None = None
    documents: Callable[[pathlib.Path], DocumentWriter] | None = None

    @property
    def receipt_path(self) -> pathlib.Path:
        """Where the receipt is written."""
        return self.output / RECEIPTS / (self.shard.name.replace("/", "-") + ".json")


def prepare_shard(job: Job, vocabulary: Vocabulary, advance: Callable[[int], None]) -> Receipt:
    """Read a shard once, and write its documents and rows and then the receipt, whole or not at all.

    Args:
      job: what is to be done.
      vocabulary: of the ids.
      advance: called with the number of bytes of the source that were read since it was last called.

    Raises:
      RunFailed: the source cannot be read, has another hash, or holds no JSON lines; the disk is full.
    """
    faults = Faults()
    with disk_errors(job.output), contextlib.ExitStack() as stack:
        parts = {split: stack.enter_context(_PartWriter(job, split, vocabulary)) for split in job.places}
        reader = _read(job, parts, faults, advance)
        if job.expected_sha256 not in (None, reader.sha256):
            raise RunFailed(
                f"{job.shard.name} has sha256 {reader.sha256}, not {job.expected_sha256} as --sha256 says; copy it "
                "again and start again: what is finished stays"
            )
        receipt = Receipt(
            name=job.shard.name,
            size=reader.content.num_bytes,
            sha256=reader.sha256,
            lines=reader.num_lines,
            broken=reader.num_broken,
            content_bytes=reader.content.size,
            lost_share=reader.content.lost_share,
            frames=reader.content.num_frames,
            unchecked=reader.content.num_unchecked,
            faults=faults.to_dict(),
            parts={split: part.finish() for split, part in parts.items()},
        )
        # Last: its presence says that the files are whole.
        write_whole(job.receipt_path, json.dumps(dataclasses.asdict(receipt), indent=1))
    return receipt


def _read(job: Job, parts: dict[str, "_PartWriter"], faults: Faults, advance: Callable[[int], None]) -> ShardReader:
    """Give every document of the shard to its split; return the reader, walked to its end."""

    def note(fault: Fault) -> None:
        faults.add(fault)
        if reader.num_broken == reader.num_lines == _ALL_BROKEN:
            raise RunFailed(
                f"{job.shard.name}: none of its first {_ALL_BROKEN:,} lines is a document, the first because of "
                f'{fault.kind}; shards are lines of JSON, {{"text": ...}} each'
            )

    try:
        with open_shard(job.shard.path) as file:
            reader = ShardReader(job.shard.name, file, note, advance)
            for document in reader.documents():
                parts[job.shard.split or split_of(document.name, job.validation_percent)].add(document)
    except OSError as error:
        if error.filename is not None and str(error.filename) != job.shard.path:
            raise
        raise RunFailed(
            f"{job.shard.path} cannot be read ({error.strerror or error}); start again when it can"
        ) from None
    return reader


class _PartWriter:
    """Writes what a shard gives to one split: under temporary names until `finish`."""

    def __init__(self, job: Job, split: str, vocabulary: Vocabulary):
        index, count = job.places[split]
        self._output, self._vocabulary = job.output, vocabulary
        self._row_length, self._single_subset = job.row_length, split != "train"
        self._row_file = f"{ROWS}/{split}-{index:05d}.array_record"
        # The names that tensorflow-datasets looks for.
        self._document_file = f"{DOCUMENTS}/documents-{split}.array_record-{index:05d}-of-{count:05d}"
        self._rows = RowWriter(self._partial(self._row_file))
        self._documents = job.documents and job.documents(self._partial(self._document_file))
        self._packers: dict[str | None, RowPacker] = {}
        self._subsets: dict[str, int] = {}
        self._content = ContentHash()
        self._num_tokens = self._num_rows = 0
        self._closed = False

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what was not finished."""
        if not self._closed:
            with contextlib.suppress(RuntimeError):
                self._close()
        for name in (self._row_file, self._document_file):
            self._partial(name).unlink(missing_ok=True)

    def add(self, document: Document) -> None:
        """Encode, pack and write a document."""
        self._content.add(document.name, document.text)
        index = list(self._subsets).index(document.subset) if document.subset in self._subsets else len(self._subsets)
        self._subsets[document.subset] = self._subsets.get(document.subset, 0) + 1
        key = document.subset if self._single_subset else None
        if key not in self._packers:
            self._packers[key] = RowPacker(self._row_length, index if self._single_subset else None)
        ids = np.append(self._vocabulary.encode(document.text), np.int32(EOS))
        self._num_tokens += len(ids)
        self._write(self._packers[key].add([ids]))
        if self._documents:
            self._documents.write(document)

    def finish(self) -> Part:
        """Write the rows that are not full, and give the files their names."""
        for packer in self._packers.values():
            self._write(packer.finish())
        self._close()
        return Part(
            documents=self._content.num_documents,
            bytes=self._content.num_bytes,
            tokens=self._num_tokens,
            rows=self._num_rows,
            content_hash=self._content.hexdigest(),
            subsets=self._subsets,
            row_file=self._name(self._row_file),
            document_file=self._name(self._document_file) if self._documents else None,
        )

    def _write(self, rows: Any) -> None:
        self._rows.write(rows)
        self._num_rows += rows.num_rows

    def _close(self) -> None:
        self._closed = True
        self._rows.close()
        if self._documents:
            self._documents.close()

    def _partial(self, name: str) -> pathlib.Path:
        path = self._output / name
        return path.with_name(path.name + PARTIAL)

    def _name(self, name: str) -> StoredFile:
        partial = self._partial(name)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        stored = StoredFile(name, partial.stat().st_size, sha256_of(partial))
        os.replace(partial, self._output / name)
        return stored


@contextlib.contextmanager
def disk_errors(output: pathlib.Path) -> Iterator[None]:
    """Turn what a full disk raises into one line: ArrayRecord knows no error but `RuntimeError`."""
    try:
        yield
    except (RunFailed, UserError):
        raise
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        file = getattr(error, "filename2", None) or getattr(error, "filename", None)
        raise RunFailed(
            f"cannot write to {output} ({reason}{f': {file}' if file else ''}); free some space and start again: what "
            "is finished stays"
        ) from error
