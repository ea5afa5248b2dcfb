"""Packing: documents of any length into rows of one length, with nothing lost and nothing repeated."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from stagjax.data.vocabulary import BOS, PAD


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed documents. R rows of T targets; only the last may end in padding.

    Attributes:
      targets_RT: int32 ids, 0 where padding.
      segment_ids_RT: int32, 1, 2, ... within a row, 0 where padding. No attention crosses from one to another.
      first_inputs_R: int32, the input before a row's first target: BOS, or the true previous token where that segment
        goes on with the previous row's document. Later segments of a row always begin a document.
    """

    targets_RT: np.ndarray
    segment_ids_RT: np.ndarray
    first_inputs_R: np.ndarray

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
        return Rows(self.targets_RT[index], self.segment_ids_RT[index], self.first_inputs_R[index])

    def padded_to(self, num_rows: int) -> "Rows":
        """Return these rows followed by rows of padding alone, `num_rows` in all."""
        extra = num_rows - self.num_rows
        return Rows(
            np.pad(self.targets_RT, ((0, extra), (0, 0)), constant_values=PAD),
            np.pad(self.segment_ids_RT, ((0, extra), (0, 0))),
            np.pad(self.first_inputs_R, (0, extra), constant_values=PAD),
        )


def pack(documents: Iterable[np.ndarray], row_length: int) -> Rows:
    """Concatenate documents and cut them into rows.

    A document that a row's end cuts goes on in the next row as a new segment.

    Args:
      documents: ids of each, with its EOS; none is empty, and neither pad nor BOS is among the ids.
      row_length: T.

    Raises:
      ValueError: a document breaks that rule: its row could not be told from padding, or from a document's beginning.
    """
    documents = [np.asarray(document, np.int32) for document in documents]
    lengths = np.array([document.size for document in documents], np.int64)
    tokens = np.concatenate([np.zeros(0, np.int32), *documents])
    if lengths.min(initial=1) < 1 or tokens.min(initial=BOS + 1) <= BOS:
        raise ValueError("a document has at least its EOS, and neither pad nor BOS among its ids")
    num_rows = -(-tokens.size // row_length)

    targets_RT = np.full((num_rows, row_length), PAD, np.int32)
    targets_RT.reshape(-1)[: tokens.size] = tokens
    begins_RT = np.zeros((num_rows, row_length), bool)
    begins_RT.reshape(-1)[np.cumsum(lengths) - lengths] = True

    previous_R = np.concatenate([np.array([BOS], np.int32), targets_RT[:-1, -1]])[:num_rows]
    first_inputs_R = np.where(begins_RT[:, 0], BOS, previous_R).astype(np.int32)
    begins_RT[:, 0] = True
    segment_ids_RT = np.cumsum(begins_RT, axis=1, dtype=np.int32)
    segment_ids_RT.reshape(-1)[tokens.size :] = 0
    return Rows(targets_RT, segment_ids_RT, first_inputs_R)


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
