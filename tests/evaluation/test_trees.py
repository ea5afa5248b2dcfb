"""Rows of trees, as arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagjax.evaluation.spans import Span
from stagjax.evaluation.trees import Batch, Tree, batches, grow, round_up, row_lengths, to_rows


def test_spans_of_one_context_share_it():
    spans = [Span((1, 5), (7, 8)), Span((1, 6), (7,)), Span((1, 5), (9,))]
    assert grow(spans) == [Tree((1, 5), [(0, (7, 8)), (2, (9,))]), Tree((1, 6), [(1, (7,))])]


def test_a_tree_that_grows_too_long_is_followed_by_another():
    spans = [Span((1, 2, 3), (4, 5, 6))] * 3
    assert [len(tree.spans) for tree in grow(spans, longest=7)] == [2, 1]
    assert [len(tree.spans) for tree in grow(spans, longest=2)] == [1, 1, 1]


def test_a_row_of_two_branches():
    tree = Tree((1, 5, 6), [(0, (7, 8, 9)), (1, (3,)), (2, (4, 2))])
    rows = to_rows(Batch([tree], num_rows=2, length=8, scored=8), lag=2)
    np.testing.assert_array_equal(rows.tokens_BT[0], [1, 5, 6, 7, 8, 4, 0, 0])
    np.testing.assert_array_equal(rows.positions_BT[0], [0, 1, 2, 3, 4, 3, 0, 0])
    np.testing.assert_array_equal(rows.branches_BT[0], [0, 0, 0, 1, 1, 3, -1, -1])
    # Two positions before: across the border into the context, on the own path.
    np.testing.assert_array_equal(rows.sources_BT[0], [-1, -1, 0, 1, 2, 1, -1, -1])
    np.testing.assert_array_equal(rows.slots_BJ[0], [2, 3, 4, 2, 2, 5, 0, 0])
    np.testing.assert_array_equal(rows.targets_BJ[0], [7, 8, 9, 3, 4, 2, 0, 0])
    assert (rows.branches_BT[1] == -1).all()


def test_a_lag_longer_than_the_context():
    tree = Tree((1,), [(0, (7, 8, 9, 6))])
    rows = to_rows(Batch([tree], 1, 4, 4), lag=2)
    np.testing.assert_array_equal(rows.sources_BT[0], [-1, -1, 0, 1])
    rows = to_rows(Batch([tree], 1, 4, 4), lag=0)
    np.testing.assert_array_equal(rows.sources_BT[0], [0, 1, 2, 3])


@given(st.integers(1, 5000))
def test_lengths_are_few_and_near(size):
    length = round_up(size)
    assert size <= length < max(size + 32, 1.25 * size) and length % 32 == 0


def test_there_are_at_most_four_lengths_an_octave():
    assert sorted({round_up(size) for size in range(257, 1025)}) == [320, 384, 448, 512, 640, 768, 896, 1024]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=40), st.sampled_from([0, 500, 10**6]))
def test_the_lengths_used_cost_least(sizes, compiling):
    def cost(lengths):
        return sum(lengths) + compiling * len(set(lengths))

    found = row_lengths(sizes, compiling)
    assert all(size <= length for size, length in zip(sizes, found, strict=True))
    rounded = [round_up(size) for size in sizes]
    assert cost(found) <= min(cost(rounded), cost([max(rounded)] * len(sizes)))
    if compiling == 0:
        assert found == rounded
    if compiling == 10**6:
        assert len(set(found)) == 1


@pytest.mark.parametrize("groups", [1, 8])
def test_batches_hold_every_tree_once(groups):
    trees = [Tree((1,) * size, [(size, (4, 5))]) for size in (3, 500, 20, 400, 90, 300)]
    made = list(batches(trees, slots=600, groups=groups))
    assert sorted(tree.spans[0][0] for batch in made for tree in batch.trees) == [3, 20, 90, 300, 400, 500]
    assert [batch.length for batch in made] == sorted([batch.length for batch in made], reverse=True)
    for batch in made:
        assert batch.num_rows == max(1, 600 // batch.length) * groups >= len(batch.trees)
        assert all(tree.num_slots <= batch.length and tree.num_scored <= batch.scored for tree in batch.trees)
