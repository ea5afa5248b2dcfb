"""The loader: which rows make up batch t is a function of t alone, so that the step number is all of its state."""

from collections.abc import Iterator

import numpy as np

from stagjax.data.packing import Rows, expand
from stagjax.data.row_files import StoredRows

_ROUNDS = 6
_MASK = (1 << 64) - 1


def permute(index: np.ndarray, num_rows: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """Return where a keyed pseudo-random permutation of range(num_rows) takes `index`, at a cost free of `num_rows`.

    A Feistel network is a permutation of the next power of four, whatever its round function is; walking on until a
    value falls below `num_rows` makes it one of range(num_rows). Its values are pinned by a test: a resumed run
    depends on them.

    Args:
      index: integers in range(num_rows), any shape.
      num_rows: at least 1.
      seed: any non-negative integer.
      epoch: selects the permutation, together with `seed`; broadcasts against `index`.

    Returns:
      int64 of the broadcast shape.
    """
    half = max(1, -(-(num_rows - 1).bit_length() // 2))
    index, epoch = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(epoch, np.uint64))
    # Flat, because numpy warns of the overflow that hashing means where an array has no dimension.
    key = _mix(_mix(np.full(index.size, seed & _MASK, np.uint64)) + epoch.reshape(-1))
    result = _feistel(index.reshape(-1), key, half)
    while (outside := result >= num_rows).any():
        result[outside] = _feistel(result[outside], key[outside], half)
    return result.astype(np.int64).reshape(index.shape)


class RowLoader:
    """Batches of rows in an order that is the concatenation, over epochs, of a permutation of all rows.

    Batch t is entries t*B to t*B+B-1 of that order: no row is dropped, and an epoch may end inside a batch. A host
    reads the entries of a batch that its devices hold, so the global batches do not depend on the number of hosts.

    Args:
      rows: the whole split, on every host.
      global_batch: B, rows in a batch over all hosts.
      seed: of the permutations.
      own: which of the B entries of a batch this host reads; None for all.

    Raises:
      ValueError: no such entries, or no rows.
    """

    def __init__(self, rows: Rows | StoredRows, global_batch: int, seed: int, own: np.ndarray | None = None):
        own = np.arange(global_batch) if own is None else np.asarray(own, np.int64)
        if own.size and not 0 <= own.min() <= own.max() < global_batch:
            raise ValueError(f"entries {own.min()} to {own.max()} are not among the {global_batch} of a batch")
        if not rows.num_rows:
            raise ValueError("there are no rows to load")
        self._rows = rows
        self._global_batch = global_batch
        self._seed = seed
        self._own = own

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this host's part of batch `step`, as `expand` describes it, [own, T]."""
        return expand(self._rows.select(self.row_indices(step)))

    def row_indices(self, step: int) -> np.ndarray:
        """Return which rows this host's part of batch `step` consists of, int64 [own].

        Raises:
          ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        epoch, index = np.divmod(step * self._global_batch + self._own, self._rows.num_rows)
        return permute(index, self._rows.num_rows, self._seed, epoch)

    def epoch(self, step: int) -> float:
        """Return how many times all rows have been read once `step` batches have been."""
        return step * self._global_batch / self._rows.num_rows


def validation_batches(
    rows: Rows | StoredRows, batch_size: int, max_rows: int | None = None, own: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield rows in order, as `expand` describes them, in batches of one shape, and with "subsets", int32 [B].

    A subset is an index of `Corpus.subsets`, 0 where rows are not told apart; that of a row of padding counts nothing.

    Args:
      rows: the whole split.
      batch_size: rows in a batch; the last one is filled up with padding, of loss weight 0.
      max_rows: rows to use, at equal distances, so that they come from all of the split; None for all.
      own: which rows of a batch this host reads; None for all.
    """
    num_rows = rows.num_rows if max_rows is None else min(max_rows, rows.num_rows)
    chosen = np.arange(num_rows) * rows.num_rows // num_rows
    for start in range(0, num_rows, batch_size):
        batch = chosen[start : start + batch_size]
        if own is not None:
            batch = batch[own[own < len(batch)]]
        selected = rows.select(batch).padded_to(batch_size if own is None else len(own))
        subsets_B = np.zeros(selected.num_rows, np.int32) if selected.subsets_R is None else selected.subsets_R.clip(0)
        yield expand(selected) | {"subsets": subsets_B}


def _feistel(value: np.ndarray, key: np.ndarray, half: int) -> np.ndarray:
    """Permute uint64 values below 4**half; each round changes one half by a hash of the other."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(round_number))) & mask)
    return left << bits | right


def _mix(value: np.ndarray) -> np.ndarray:
    """Hash uint64 values (the finaliser of SplitMix64: Steele, Lea, Flood, OOPSLA 2014); overflow is meant."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
