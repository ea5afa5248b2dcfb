"""Aggregates and their standard errors: against formulas written out, and against resampling."""

import itertools
import math

import numpy as np
import pytest

from stagjax.tasks import statistics


def test_the_mean_has_the_sample_deviation_over_root_n():
    estimate = statistics.mean([1.0, 0.0, 0.0, 1.0, 1.0])
    assert estimate.value == 0.6
    assert estimate.stderr == pytest.approx(math.sqrt(5 * 0.6 * 0.4 / 4 / 5))
    assert statistics.mean([0.5]) == (0.5, None)
    assert math.isnan(statistics.mean([]).value)


def bootstrapped(aggregate, *columns, repeats=4000):
    """Return the standard deviation of an aggregate over resampled documents."""
    generator, columns = np.random.default_rng(0), [np.asarray(column) for column in columns]
    size = len(columns[0])
    draws = (generator.integers(0, size, size) for _ in range(repeats))
    return np.std([aggregate(*(column[rows].tolist() for column in columns)).value for rows in draws])


def test_closed_forms_are_what_resampling_gives():
    generator = np.random.default_rng(1)
    logprobs, counts = -generator.exponential(0.5, 300), generator.integers(1, 60, 300)
    gold = generator.integers(0, 3, 300)
    predicted = np.where(generator.random(300) < 0.6, gold, generator.integers(0, 3, 300))
    for aggregate, columns in (
        (statistics.mean, (logprobs,)),
        (statistics.perplexity, (logprobs,)),
        (statistics.ratio, (logprobs * counts, counts)),
        (statistics.ratio_perplexity, (logprobs * counts, counts)),
        (lambda golds, predictions: statistics.macro_f1(golds, predictions, 3), (gold, predicted)),
    ):
        stderr = aggregate(*(np.asarray(column).tolist() for column in columns)).stderr
        assert stderr == pytest.approx(bootstrapped(aggregate, *columns), rel=0.06)


def test_perplexities():
    assert statistics.perplexity([-1.0, -3.0]).value == pytest.approx(math.exp(2))
    assert statistics.ratio_perplexity([-4.0, -2.0], [1, 2]).value == pytest.approx(math.exp(2))
    assert statistics.perplexity([-1e6]) == (math.inf, None)
    assert math.isnan(statistics.ratio([0.0], [0]).value)


def test_macro_f1_counts_each_class_alike_and_an_absent_one_as_zero():
    # Class 0: 2 of 3 found, nothing else taken for it: F1 = 4 / 5. Class 1: F1 = 2 / 3. Class 2 does not occur.
    estimate = statistics.macro_f1([0, 0, 0, 1], [0, 0, 1, 1], 3)
    assert estimate.value == pytest.approx((4 / 5 + 2 / 3) / 3)


def test_pass_at_k_is_the_share_of_draws_with_a_passing_sample():
    for samples, k in itertools.product(range(1, 7), range(1, 7)):
        for passed in range(samples + 1 if k <= samples else 0):
            draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
            share = sum(any(draw) for draw in draws) / len(draws)
            assert statistics.pass_at_k(samples, passed, k) == pytest.approx(share)
    with pytest.raises(ValueError, match="pass@10 of 5 samples"):
        statistics.pass_at_k(5, 1, 10)
    assert statistics.pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-12)


def test_words_are_the_parts_between_white_space_empty_ones_too():
    assert [statistics.count_words(text) for text in ("", "a", "a b", " a\n\u00a0b ")] == [1, 1, 2, 4]
