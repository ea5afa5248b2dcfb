"""The loader: a permutation pinned by golden values, batches that depend on the step alone, one shape."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagjax.data.loader import RowLoader, permute, validation_batches
from stagjax.data.packing import expand, pack


def numbered_rows(num_rows, row_length=4):
    """Rows that hold their own number."""
    return pack([np.full(row_length, 10 + row) for row in range(num_rows)], row_length)


@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**70), epoch=st.integers(0, 10**6))
@example(num_rows=1, seed=0, epoch=0)
@example(num_rows=2, seed=0, epoch=0)
@example(num_rows=4**5, seed=0, epoch=0)
@example(num_rows=4**5 + 1, seed=0, epoch=0)
def test_permute_is_a_bijection(num_rows, seed, epoch):
    permuted = permute(np.arange(num_rows), num_rows, seed, epoch)
    assert permuted.dtype == np.int64
    assert sorted(permuted.tolist()) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [2**31 + 11, 10**15, 2**62])
def test_permute_stays_in_range_for_large_corpora(num_rows):
    permuted = permute(np.arange(10_000), num_rows, 1, 2)
    assert len(set(permuted.tolist())) == 10_000
    assert permuted.min() >= 0 and permuted.max() < num_rows
    assert abs(permuted.mean() / num_rows - 0.5) < 0.02


def test_permute_is_pinned():
    # A checkpoint is resumed on these values: they may never change.
    assert permute(np.arange(10), 10, 0, 0).tolist() == [0, 1, 2, 9, 8, 3, 4, 7, 6, 5]
    assert permute(np.arange(10), 10, 0, 1).tolist() == [6, 5, 8, 0, 2, 1, 7, 3, 4, 9]
    assert permute(np.arange(10), 10, 7, 0).tolist() == [9, 2, 3, 5, 1, 6, 7, 4, 0, 8]
    assert permute(np.array([0, 1, 999_999]), 1_000_000, 3, 5).tolist() == [918650, 432827, 254011]


def test_permute_takes_an_epoch_for_each_index():
    index, epoch = np.array([3, 3, 0, 9]), np.array([0, 5, 5, 2])
    wanted = [permute(np.array(i), 10, 4, e).item() for i, e in zip(index, epoch, strict=True)]
    assert permute(index, 10, 4, epoch).tolist() == wanted


def test_epochs_and_seeds_all_differ():
    orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed, epoch in itertools.product(range(30), range(30))}
    assert len(orders) == 900


def test_every_row_is_equally_likely_everywhere():
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), permute(np.arange(8), 8, 0, epoch)] += 1
    # Chi-square with 49 degrees of freedom: above 100 by chance once in 10 000 hash functions.
    assert ((counts - 500) ** 2 / 500).sum() < 100


@given(
    num_rows=st.integers(1, 40),
    parts=st.integers(1, 6),
    num_hosts=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 9),
)
@example(num_rows=3, parts=5, num_hosts=2, seed=0)  # a batch that spans four epochs
def test_batches_follow_the_order_over_epochs_on_any_number_of_hosts(num_rows, parts, num_hosts, seed):
    global_batch, rows = parts * num_hosts, numbered_rows(num_rows)
    order = np.concatenate([permute(np.arange(num_rows), num_rows, seed, epoch) for epoch in range(24)])
    loaders = [RowLoader(rows, global_batch, seed, own) for own in np.split(np.arange(global_batch), num_hosts)]
    for step in (0, 1, 3, 2):
        wanted = order[step * global_batch :][:global_batch]
        if len(wanted) == global_batch:
            batch = np.concatenate([loader.batch(step)["targets"] for loader in loaders])
            np.testing.assert_array_equal(batch[:, 0] - 10, wanted)


def test_a_batch_is_expanded_rows():
    rows = pack([np.arange(3, 40), np.arange(5, 90)], 8)
    loader = RowLoader(rows, 4, seed=1)
    wanted = expand(rows.select(loader.row_indices(2)))
    batch = loader.batch(2)
    assert batch.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(batch[name], wanted[name])


def test_epoch_counts_rows_read():
    loader = RowLoader(numbered_rows(10), 4, seed=0)
    assert [loader.epoch(step) for step in (0, 1, 5)] == [0.0, 0.4, 2.0]


def test_a_host_reads_the_entries_that_it_is_asked_for():
    rows, own = numbered_rows(10), np.array([0, 3, 4])
    whole = RowLoader(rows, 6, seed=1).batch(7)["targets"]
    np.testing.assert_array_equal(RowLoader(rows, 6, 1, own).batch(7)["targets"], whole[own])


def test_bad_loaders_are_refused():
    for own in ([-1, 0], [0, 6]):
        with pytest.raises(ValueError, match="are not among the 6 of a batch"):
            RowLoader(numbered_rows(3), 6, 0, np.array(own))
    with pytest.raises(ValueError, match="no rows"):
        RowLoader(pack([], 4), 2, 0)
    with pytest.raises(ValueError, match="step -1 is negative"):
        RowLoader(numbered_rows(3), 2, 0).batch(-1)


@pytest.mark.parametrize(("max_rows", "wanted"), [(None, 7), (100, 7), (6, 6), (4, 4), (1, 1)])
def test_validation_reads_in_order_in_one_shape(max_rows, wanted):
    batches = list(validation_batches(numbered_rows(7), 3, max_rows))
    assert all(batch.pop("subsets").tolist() == [0, 0, 0] for batch in batches)
    assert {array.shape for batch in batches for array in batch.values()} == {(3, 4)}
    targets, weights = (np.concatenate([batch[name] for batch in batches]) for name in ("targets", "loss_weights"))
    assert targets[:wanted, 0].tolist() == [10 + row * 7 // wanted for row in range(wanted)]
    assert weights[:wanted].all() and not weights[wanted:].any()
    assert not any(np.concatenate([batch[name] for batch in batches])[wanted:].any() for name in batches[0])
    assert len(batches) == -(-wanted // 3)


@pytest.mark.parametrize("max_rows", [7, 4])
def test_hosts_read_their_rows_of_the_validation_batches(max_rows):
    rows, hosts = numbered_rows(7), (np.array([0, 2]), np.array([1, 2]))  # the last row is shared
    whole = list(validation_batches(rows, 3, max_rows))
    for own in hosts:
        parts = list(validation_batches(rows, 3, max_rows, own))
        assert len(parts) == len(whole)
        for part, batch in zip(parts, whole, strict=True):
            for name in batch:
                np.testing.assert_array_equal(part[name], batch[name][own])
