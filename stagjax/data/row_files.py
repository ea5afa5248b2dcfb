"""Rows on disk: a record of fixed length for each, in ArrayRecord files that are read in any order."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from stagjax.data.packing import Rows
from stagjax.errors import RunFailed

# A row a chunk, so that one is read without its neighbours. Ids need 18 bits of their 32: level 1 takes 0.4 of the raw
# size and is written and read as fast as nothing else but no compression at all.
_WRITER_OPTIONS = "group_size:1,zstd:1"
# In the thread that asks and without reading ahead: rows are asked for one by one, in random order.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER = 1 << 15  # Bytes.
_MOST_OPEN = 256  # Files at a time.
_AT_ONCE = 256  # Rows that `blocks` reads at a time.


class RowWriter:
    """Writes rows to one file; the caller renames it once it is closed.

    A record is 2T+2 little-endian int32: T targets, T segment ids, the first input, and the index of the row's subset
    (-1 where a row may hold documents of several).
    """

    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_module

        self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def write(self, rows: Rows) -> None:
        """Append rows."""
        if not rows.num_rows:
            return
        subsets_R = np.full(rows.num_rows, -1) if rows.subsets_R is None else rows.subsets_R
        columns = (rows.targets_RT, rows.segment_ids_RT, rows.first_inputs_R[:, None], subsets_R[:, None])
        for record in np.concatenate(columns, axis=1).astype("<i4"):
            self._writer.write(record.tobytes())

    def close(self) -> None:
        """Write what is left; raise `RuntimeError` where that fails."""
        self._writer.close()


@dataclasses.dataclass(frozen=True)
class RowFile:
    """A file of rows, and what is known of it.

    Attributes:
      path: where it lies.
      num_rows: records in it.
      num_tokens: targets that are not padding.
      num_documents: that begin in it.
      subsets: for each index in its records the index of that subset in the whole corpus.
    """

    path: pathlib.Path
    num_rows: int
    num_tokens: int
    num_documents: int
    subsets: tuple[int, ...]


class StoredRows:
    """The rows of several files, one after the other, read when they are selected; used like `packing.Rows`.

    Args:
      files: in the order of their rows.
      row_length: T.
      single_subset: whether every row belongs to one subset.
    """

    def __init__(self, files: Sequence[RowFile], row_length: int, single_subset: bool):
        self.row_length = row_length
        self.num_tokens = sum(file.num_tokens for file in files)
        self.num_documents = sum(file.num_documents for file in files)
        self._files, self._single_subset = list(files), single_subset
        self._ends = np.cumsum([file.num_rows for file in files], dtype=np.int64)
        self._readers: dict[int, object] = {}

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def fill(self) -> float:
        """Share of targets that are not padding."""
        return self.num_tokens / max(1, self.num_rows * self.row_length)

    def select(self, index: np.ndarray | slice) -> Rows:
        """Read the rows of `index`, in its order.

        Raises:
          RunFailed: a record is damaged; the file and the record are named.
        """
        index = np.arange(self.num_rows)[index] if isinstance(index, slice) else np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < self.num_rows:
            raise IndexError(f"rows {index.min()} to {index.max()} are not among {self.num_rows}")
        words_RC = np.empty((index.size, 2 * self.row_length + 2), np.int32)
        subsets_R = np.empty(index.size, np.int32)
        file_R = np.searchsorted(self._ends, index, side="right")
        for number in np.unique(file_R).tolist():
            chosen = np.flatnonzero(file_R == number)
            file = self._files[number]
            words_RC[chosen] = self._read(number, index[chosen] - (self._ends[number] - file.num_rows))
            if self._single_subset:
                subsets_R[chosen] = np.asarray(file.subsets, np.int32)[words_RC[chosen, -1]]
        length = self.row_length
        return Rows(
            words_RC[:, :length],
            words_RC[:, length : 2 * length],
            words_RC[:, 2 * length],
            subsets_R if self._single_subset else None,
        )

    def blocks(self) -> Iterator[Rows]:
        """Read all rows in order, some at a time."""
        for start in range(0, self.num_rows, _AT_ONCE):
            yield self.select(np.arange(start, min(start + _AT_ONCE, self.num_rows)))

    def _read(self, number: int, records: np.ndarray) -> np.ndarray:
        """Return the words of some records of a file, [records, 2T+2]."""
        reader, width = self._reader(number), 2 * self.row_length + 2
        try:
            data = b"".join(reader.read(records.tolist()))
            return np.frombuffer(data, "<i4").reshape(len(records), width)
        except (RuntimeError, ValueError):
            raise self._damaged(number, records) from None

    def _reader(self, number: int) -> object:
        from array_record.python import array_record_module

        if number not in self._readers:
            if len(self._readers) >= _MOST_OPEN:
                self._readers.pop(next(iter(self._readers))).close()
            file = self._files[number]
            if not file.path.is_file():
                raise RunFailed(f"{file.path} is gone; prepare the data again, or put the file back")
            reader = array_record_module.ArrayRecordReader(
                str(file.path), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
            )
            if reader.num_records() != file.num_rows:
                # A file whose end is damaged opens, and says that it is empty.
                raise _damage(file, f"holds {reader.num_records():,} rows that can be read, not {file.num_rows:,}")
            self._readers[number] = reader
        return self._readers[number]

    def _damaged(self, number: int, records: np.ndarray) -> RunFailed:
        """Return the error that names the first of some records that cannot be read."""
        reader, size = self._reader(number), 4 * (2 * self.row_length + 2)
        for record in records.tolist():
            try:
                (data,) = reader.read([record])
            except RuntimeError as error:
                return _damage(self._files[number], f"record {record} is damaged ({error})")
            if len(data) != size:
                return _damage(self._files[number], f"record {record} has {len(data)} bytes, not {size}")
        return _damage(self._files[number], "gave a damaged record once, and then not again: look at the disk")


def _damage(file: RowFile, fault: str) -> RunFailed:
    return RunFailed(
        f"{file.path}: {fault}; `stagjax data verify` checks all files, and `stagjax data prepare` makes those anew "
        "that are removed"
    )
