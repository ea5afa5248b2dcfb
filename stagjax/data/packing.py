"""Packing: documents of any length into rows of one length, with nothing lost and nothing repeated."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stagjax.data.vocabulary import BOS, EOS, PAD


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed documents. R rows of T targets; of what was packed together only the last row may end in padding.

    Attributes:
      targets_RT: int32 ids, 0 where padding.
      segment_ids_RT: int32, 1, 2, ... within a row, 0 where padding. No attention crosses from one to another.
      first_inputs_R: int32, the input before a row's first target: BOS, or the true previous token where that segment
        goes on with the previous row's document. Later segments of a row always begin a document.
      subsets_R: int32, the index of the subset that all documents of a row belong to, -1 where all is padding; None
        where a row may hold documents of several.
    """

    targets_RT: np.ndarray
    segment_ids_RT: np.ndarray
    first_inputs_R: np.ndarray
    subsets_R: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """R."""
        return self.targets_RT.shape[0]

    @property
    def row_length(self) -> int:
        """T."""
        return self.targets_RT.shape[1]

    @property
    def num_documents(self) -> int:
        """Documents that begin in these rows."""
        num_segments = int(self.segment_ids_RT.max(axis=1, initial=0).sum())
        return num_segments - int(np.count_nonzero(self.first_inputs_R > BOS))

    @property
    def num_tokens(self) -> int:
        """Targets that are not padding."""
        return int(np.count_nonzero(self.segment_ids_RT))

    @property
    def fill(self) -> float:
        """Share of targets that are not padding."""
        return self.num_tokens / max(1, self.targets_RT.size)

    def select(self, index: np.ndarray | slice) -> "Rows":
        """Return the rows of `index`, in its order."""
        subsets_R = None if self.subsets_R is None else self.subsets_R[index]
        return Rows(self.targets_RT[index], self.segment_ids_RT[index], self.first_inputs_R[index], subsets_R)

    def padded_to(self, num_rows: int) -> "Rows":
        """Return these rows followed by rows of padding alone, `num_rows` in all."""
        extra = num_rows - self.num_rows
        return Rows(
            np.pad(self.targets_RT, ((0, extra), (0, 0)), constant_values=PAD),
            np.pad(self.segment_ids_RT, ((0, extra), (0, 0))),
            np.pad(self.first_inputs_R, (0, extra), constant_values=PAD),
            None if self.subsets_R is None else np.pad(self.subsets_R, (0, extra), constant_values=-1),
        )


class RowPacker:
    """Packs documents as they come: rows leave it as soon as they are full.

    Args:
      row_length: T.
      subset: of all its documents, an index; None where rows may hold documents of several subsets.
    """

    def __init__(self, row_length: int, subset: int | None = None):
        self._row_length, self._subset = row_length, subset
        self._tokens = np.zeros(0, np.int32)  # Those that fill no row yet, and where documents begin among them.
        self._begins = np.zeros(0, bool)
        self._previous = BOS  # The token before them.

    def add(self, documents: Iterable[np.ndarray]) -> Rows:
        """Return the rows that are full with these documents; raises as `pack`."""
        documents = [np.asarray(document, np.int32) for document in documents]
        lengths = np.array([document.size for document in documents], np.int64)
        tokens = np.concatenate([self._tokens, *documents])
        if lengths.min(initial=1) < 1 or tokens.min(initial=BOS + 1) <= BOS:
            raise ValueError("a document has at least its EOS, and neither pad nor BOS among its ids")
        begins = np.zeros(tokens.size, bool)
        begins[: self._tokens.size] = self._begins
        begins[self._tokens.size + np.cumsum(lengths) - lengths] = True
        num_rows = tokens.size // self._row_length
        used = num_rows * self._row_length
        rows = self._rows(tokens[:used], begins[:used], num_rows)
        if num_rows:
            self._previous = int(tokens[used - 1])
        # Copies, or a token that stays would keep the memory of a whole document.
        self._tokens, self._begins = tokens[used:].copy(), begins[used:].copy()
        return rows

    def finish(self) -> Rows:
        """Return the last row, filled up with padding; none where all tokens have left. The packer is done then."""
        return self._rows(self._tokens, self._begins, -(-self._tokens.size // self._row_length))

    def _rows(self, tokens: np.ndarray, begins: np.ndarray, num_rows: int) -> Rows:
        shape = (num_rows, self._row_length)
        targets_RT, begins_RT = np.full(shape, PAD, np.int32), np.zeros(shape, bool)
        targets_RT.reshape(-1)[: tokens.size] = tokens
        begins_RT.reshape(-1)[: tokens.size] = begins
        previous_R = np.concatenate([np.array([self._previous], np.int32), targets_RT[:-1, -1]])[:num_rows]
        first_inputs_R = np.where(begins_RT[:, 0], BOS, previous_R).astype(np.int32)
        begins_RT[:, 0] = True
        segment_ids_RT = np.cumsum(begins_RT, axis=1, dtype=np.int32)
        segment_ids_RT.reshape(-1)[tokens.size :] = 0
        subsets_R = None if self._subset is None else np.full(num_rows, self._subset, np.int32)
        return Rows(targets_RT, segment_ids_RT, first_inputs_R, subsets_R)


def pack(documents: Iterable[np.ndarray], row_length: int, subset: int | None = None) -> Rows:
    """Concatenate documents and cut them into rows.

    A document that a row's end cuts goes on in the next row as a new segment.

    Args:
      documents: ids of each, with its EOS; none is empty, and neither pad nor BOS is among the ids.
      row_length: T.
      subset: of all of them, an index; None where they are of several subsets.

    Raises:
      ValueError: a document breaks that rule: its row could not be told from padding, or from a document's beginning.
    """
    packer = RowPacker(row_length, subset)
    return concatenate([packer.add(documents), packer.finish()])


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, one after the other; there is at least one part."""
    subsets = [part.subsets_R for part in parts if part.subsets_R is not None]
    if len(subsets) not in (0, len(parts)):
        raise ValueError("rows of a single subset and rows of several do not go together")
    return Rows(
        np.concatenate([part.targets_RT for part in parts]),
        np.concatenate([part.segment_ids_RT for part in parts]),
        np.concatenate([part.first_inputs_R for part in parts]),
        np.concatenate(subsets) if subsets else None,
    )


def unpack(parts: Iterable[Rows]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the ids of every document, with its EOS, and its subset: what was packed, in the order in which they end.

    The subset is an index, -1 where rows mix them.

    Args:
      parts: consecutive rows; where rows are of single subsets, a document goes on in the next row of its own.
    """
    begun: dict[int, list[np.ndarray]] = {}
    for rows in parts:
        for row in range(rows.num_rows):
            tokens = rows.targets_RT[row][rows.segment_ids_RT[row] > 0]
            subset = -1 if rows.subsets_R is None else int(rows.subsets_R[row])
            pending = begun.setdefault(subset, [])
            start = 0
            for end in np.flatnonzero(tokens == EOS) + 1:
                yield np.concatenate([*pending, tokens[start:end]]), subset
                pending.clear()
                start = end
            if start < tokens.size:
                pending.append(tokens[start:].copy())


def expand(rows: Rows) -> dict[str, np.ndarray]:
    """Return what a model reads of a selection of rows, all [B, T].

    Returns:
      inputs: int32, the targets shifted right by one within each segment; a segment begins with BOS or, where its
        document began in an earlier row, with the true previous token.
      targets: int32.
      positions: int32, from 0 within each segment; 0 where padding.
      segment_ids: int32, 0 where padding.
      loss_weights: float32, 0 where padding and 1 elsewhere.
    """
    targets_BT, segment_ids_BT = rows.targets_RT, rows.segment_ids_RT
    begins_BT = np.ones(targets_BT.shape, bool)
    begins_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    real_BT = segment_ids_BT > 0

    inputs_BT = np.empty_like(targets_BT)
    inputs_BT[:, 1:] = np.where(begins_BT[:, 1:], BOS, targets_BT[:, :-1])
    inputs_BT[:, 0] = rows.first_inputs_R
    column_T = np.arange(rows.row_length, dtype=np.int32)
    first_column_BT = np.maximum.accumulate(np.where(begins_BT, column_T, 0), axis=1)
    return {
        "inputs": np.where(real_BT, inputs_BT, PAD),
        "targets": targets_BT,
        "positions": np.where(real_BT, column_T - first_column_BT, 0),
        "segment_ids": segment_ids_BT,
        "loss_weights": real_BT.astype(np.float32),
    }
