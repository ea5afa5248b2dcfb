"""Rows of tokens for the scoring pass: a context once, and behind it its continuations as branches of a tree.

A row is a path or a tree: slots of branch 0 are the context, those of branch b > 0 continuation b. A slot sees its own
branch and the context, up to its own position. Positions of a branch go on from the context's, so branches share them.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stagjax.evaluation.spans import Span

# A tree that would be longer is cut into several, which compute its context again: attention costs more with the
# length of a row, though branches do not see each other.
LONGEST = 2048

# What compiling one more row length costs, in tokens that could have been scored instead (measured on 2 cores: 1 to 2
# seconds at some 10,000 tokens a second).
COMPILING = 16384

CONTEXT, PADDING = 0, -1


@dataclasses.dataclass
class Tree:
    """A context and continuations of it.

    Attributes:
      context: ids.
      spans: number of each span among all, and its continuation.
    """

    context: tuple[int, ...]
    spans: list[tuple[int, tuple[int, ...]]] = dataclasses.field(default_factory=list)

    @property
    def num_slots(self) -> int:
        """Inputs of the model: nothing is read after the last token of a continuation."""
        return len(self.context) + sum(len(ids) - 1 for _, ids in self.spans)

    @property
    def num_scored(self) -> int:
        """Tokens that are scored."""
        return sum(len(ids) for _, ids in self.spans)


class Batch(NamedTuple):
    """Trees that are computed together, in rows of one length.

    Attributes:
      trees: one a row; the last batch of a length has fewer trees than rows.
      num_rows: rows.
      length: slots of a row.
      scored: tokens of a row that may be scored.
    """

    trees: list[Tree]
    num_rows: int
    length: int
    scored: int


class Rows(NamedTuple):
    """A batch of trees as arrays, one tree a row, int32.

    Attributes:
      tokens_BT: inputs.
      positions_BT: of each slot on its path.
      branches_BT: 0 is the context, -1 padding.
      sources_BT: the slot that is `lag` positions before on the same path, whose output a slot's memory is; -1 where
        the path has none.
      slots_BJ: where each scored token is predicted; padded with 0.
      targets_BJ: the scored tokens.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    branches_BT: np.ndarray
    sources_BT: np.ndarray
    slots_BJ: np.ndarray
    targets_BJ: np.ndarray


def grow(spans: Sequence[Span], longest: int = LONGEST) -> list[Tree]:
    """Return trees that hold all spans, those of one context together up to `longest` slots."""
    growing: dict[tuple[int, ...], Tree] = {}
    trees = []
    for number, span in enumerate(spans):
        tree = growing.get(span.context)
        if tree is None or tree.num_slots + len(span.continuation) - 1 > longest:
            tree = growing[span.context] = Tree(span.context)
            trees.append(tree)
        tree.spans.append((number, span.continuation))
    return trees


def row_lengths(sizes: Sequence[int], compiling: int = COMPILING) -> list[int]:
    """Return the row length of each tree, rounded up from its size.

    Lengths are multiples of 32 with at most four to an octave, so that later calls find them compiled. Of those, the
    ones used are chosen such that padding and what `compiling` says of each cost least in all.
    """
    rounded = [round_up(size) for size in sizes]
    lengths = sorted(set(rounded))
    counts = [rounded.count(length) for length in lengths]
    # cost[n]: of the n shortest lengths, where the longest of them is used; choice[n]: how many shorter ones it serves.
    cost, served = [0], [0]
    for n in range(1, len(lengths) + 1):
        options = [(cost[first] + compiling + lengths[n - 1] * sum(counts[first:n]), -first) for first in range(n)]
        least, first = min(options)
        cost.append(least)
        served.append(-first)
    used, n = {}, len(lengths)
    while n:
        used |= dict.fromkeys(lengths[served[n] : n], lengths[n - 1])
        n = served[n]
    return [used[length] for length in rounded]


def round_up(size: int) -> int:
    """Return the next multiple of 32 that is one of four equal steps of an octave."""
    step = max(32, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def batches(trees: Sequence[Tree], slots: int, groups: int) -> Iterator[Batch]:
    """Yield batches, longest rows first, of some `slots` for each of `groups` devices."""
    sizes = [tree.num_slots for tree in trees]
    by_length = sorted(zip(row_lengths(sizes), sizes, range(len(trees)), strict=True), reverse=True)
    for length, group in itertools.groupby(by_length, key=lambda member: member[0]):
        members = [trees[number] for _, _, number in group]
        # A power of two, and one for all batches of a length: each is another program.
        scored = max(16, 1 << (max(tree.num_scored for tree in members) - 1).bit_length())
        count = max(1, slots // length) * groups
        for first in range(0, len(members), count):
            yield Batch(members[first : first + count], count, length, scored)


def to_rows(batch: Batch, lag: int) -> Rows:
    """Return the rows of a batch, for a model of some lag."""
    sizes = (batch.length,) * 4 + (batch.scored,) * 2
    rows = Rows(*(np.zeros((batch.num_rows, size), np.int32) for size in sizes))
    rows.branches_BT[:] = PADDING
    rows.sources_BT[:] = -1
    for index, tree in enumerate(batch.trees):
        _fill(Rows(*(array[index] for array in rows)), tree, lag)
    return rows


def _fill(row: Rows, tree: Tree, lag: int) -> None:
    """Write a tree into the arrays of one row."""
    tokens_T, positions_T, branches_T, sources_T, slots_J, targets_J = row
    C = len(tree.context)
    tokens_T[:C], positions_T[:C], branches_T[:C] = tree.context, np.arange(C), CONTEXT
    sources_T[:C] = np.maximum(np.arange(C) - lag, -1)
    first, done = C, 0
    for branch, (_, ids) in enumerate(tree.spans, 1):
        n = len(ids) - 1
        own = slice(first, first + n)
        # Slots of the path that ends in this branch: the context's, then its own.
        path = np.concatenate([np.arange(C), np.arange(first, first + n)])
        tokens_T[own], positions_T[own], branches_T[own] = ids[:-1], np.arange(C, C + n), branch
        before = np.arange(C, C + n) - lag
        sources_T[own] = np.where(before >= 0, path[before], -1)
        slots_J[done : done + n + 1], targets_J[done : done + n + 1] = path[C - 1 :], ids
        first, done = first + n, done + n + 1
