"""Scoring through the decode path: a context is prefilled, and its continuations are read token by token.

So recurrent decoding is scored as it runs in use; teacher-forced, its scores would be those of all passes.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from stagjax.decoding import step as steps
from stagjax.decoding.cache import repeat_rows
from stagjax.decoding.generation import pad_left
from stagjax.decoding.loop import EVERYWHERE, ROWS, Decoder, round_up, spmd
from stagjax.decoding.placement import DecodeParams, Placement, specs
from stagjax.decoding.prefill import last_y, prefill
from stagjax.decoding.sampling import log_probability
from stagjax.decoding.slices import Slices
from stagjax.evaluation.trees import Tree

# Continuations that are read at a time by each group of devices that holds a copy of the parameters.
ROWS_AT_ONCE = 32

# Continuations of a context that go on from one prefill; the rest prefill it again.
MOST_BRANCHES = 8


class Steps(NamedTuple):
    """Trees that are stepped through together, as arrays. Row r of the R n is continuation r modulo n of context r / n.

    Attributes:
      tokens_BT: contexts, aligned at the right.
      starts_B: slot of each context's first token.
      targets_nR: tokens that are scored, step by step; padded with 0.
    """

    tokens_BT: np.ndarray
    starts_B: np.ndarray
    targets_nR: np.ndarray


class Stepped:
    """Scores trees with a decoder.

    Args:
      decoder: of a mode; its mesh divides rows over `data`.
      max_length: of the model.
    """

    def __init__(self, decoder: Decoder, max_length: int):
        self._decoder, self._max_length = decoder, max_length
        self._groups = decoder.placement.mesh.shape["data"]

    def batches(self, trees: Sequence[Tree]) -> Iterator[list[Tree]]:
        """Yield trees of equally many continuations, longest contexts first."""
        parts = [
            Tree(tree.context, tree.spans[first : first + MOST_BRANCHES])
            for tree in trees
            for first in range(0, len(tree.spans), MOST_BRANCHES)
        ]
        parts.sort(key=lambda tree: (len(tree.spans), len(tree.context), tree.num_scored), reverse=True)
        for branches, group in itertools.groupby(parts, key=lambda tree: len(tree.spans)):
            members, count = list(group), self._num_contexts(branches)
            for first in range(0, len(members), count):
                yield members[first : first + count]

    def __call__(self, trees: Sequence[Tree]) -> tuple[jax.Array, jax.Array]:
        """Return (logprobs_nR float32, is_greedy_nR) of a batch's targets; see `Steps` for their order."""
        branches = len(trees[0].spans)
        taken = to_steps(trees, self._num_contexts(branches), self._max_length)
        return _score(self._decoder.placement, branches, self._decoder.num_ids, self._decoder.placed, taken)

    def _num_contexts(self, branches: int) -> int:
        return max(1, ROWS_AT_ONCE // branches) * self._groups


def to_steps(trees: Sequence[Tree], num_contexts: int, max_length: int) -> Steps:
    """Return the arrays of trees with equally many continuations, filled up with copies of the last one."""
    filled = [*trees, *[trees[-1]] * (num_contexts - len(trees))]
    tokens_BT, starts_B = pad_left([tree.context for tree in filled], max_length)
    continuations = [ids for tree in filled for _, ids in tree.spans]
    longest = max(map(len, continuations))
    targets_nR = np.zeros((max(4, 1 << (longest - 1).bit_length()), len(continuations)), np.int32)
    for row, ids in enumerate(continuations):
        targets_nR[: len(ids), row] = ids
    return Steps(tokens_BT, starts_B, targets_nR)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score(
    placement: Placement, branches: int, num_ids: int, params: DecodeParams, taken: Steps
) -> tuple[jax.Array, jax.Array]:
    def part(params: DecodeParams, tokens_BT, starts_B, targets_nR):
        slices = Slices(placement)
        first_id = slices.chip() * params.embedding.shape[0]
        capacity = round_up(tokens_BT.shape[1] + targets_nR.shape[0], 32)
        outs, state = prefill(placement, params, tokens_BT, starts_B, capacity)
        y_RD = jnp.repeat(last_y(placement, params, outs), branches, axis=0)
        state = repeat_rows(state, branches, placement.passes)

        def score(y_RD: jax.Array, targets_R: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits_RV = steps.logits(placement, params, y_RD)
            return log_probability(logits_RV, targets_R, num_ids, first_id, slices.gather)

        def body(carry: tuple[Any, jax.Array], targets_R: jax.Array) -> tuple[Any, Any]:
            state, read_R = carry
            y_RD, state = steps.decode_step(placement, params, state, read_R)
            return (state, targets_R), score(y_RD, targets_R)

        first = score(y_RD, targets_nR[0])
        _, rest = jax.lax.scan(body, (state, targets_nR[0]), targets_nR[1:])
        found = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, rest)
        # Every process reads all of them.
        everywhere = lambda x: jax.lax.all_gather(x, "data", axis=1, tiled=True)
        return jax.tree.map(everywhere, found) if placement.mesh.shape["data"] > 1 else found

    across = PartitionSpec(None, "data")
    program = spmd(placement, part, (specs(params), ROWS, ROWS, across), (EVERYWHERE, EVERYWHERE))
    return program(params, *taken)
