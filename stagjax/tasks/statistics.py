"""Aggregates over documents, each with its standard error in closed form.

A mean's standard error is the sample's standard deviation over sqrt(n). Whatever else is a smooth function of means
gets the delta method: its linearisation at the sample's means is itself a mean, of one value a document. (The harness
bootstraps these instead, or leaves them out.)
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Scores = Sequence[Mapping[str, Any]]


class Estimate(NamedTuple):
    """A metric over documents.

    Attributes:
      value: of the metric; not a number where nothing was there to be counted.
      stderr: its standard error, None where there are too few documents to tell (below 2) or the value is no number.
    """

    value: float
    stderr: float | None


@dataclasses.dataclass(frozen=True)
class Metric:
    """How the scores of documents become one number.

    Attributes:
      name: as reports show it; the harness's name wherever it has the metric.
      aggregate: scores of all documents -> estimate.
      higher_is_better: whether more is better.
      perfect: value of a model that makes no mistake: 1, or 100 where the metric counts percent; None for perplexities.
      optional: whether it is left out where documents have no score of its name.
    """

    name: str
    aggregate: Callable[[Scores], Estimate]
    higher_is_better: bool = True
    perfect: float | None = 1.0
    optional: bool = False


def mean_metric(name: str, optional: bool = False) -> Metric:
    """Return the metric that is the mean of the documents' scores of that name."""
    return Metric(name, lambda scores: mean([score[name] for score in scores]), optional=optional)


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean; its standard error is the sample standard deviation / sqrt(n)."""
    if not values:
        return Estimate(math.nan, None)
    return Estimate(sum(values) / len(values), _stderr_of_mean(values))


def perplexity(logprobs: Sequence[float]) -> Estimate:
    """Return exp(-mean), with the delta method's standard error: the value times that of the mean."""
    return _exp(negated(mean(logprobs)))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return r = sum / sum; its standard error is that of the mean of n_i - r d_i, over the mean of d_i."""
    total = sum(denominators)
    if not total:
        return Estimate(math.nan, None)
    value = sum(numerators) / total
    residuals = [n - value * d for n, d in zip(numerators, denominators, strict=True)]
    stderr = _stderr_of_mean(residuals)
    return Estimate(value, None if stderr is None else stderr * len(denominators) / abs(total))


def ratio_perplexity(logprobs: Sequence[float], counts: Sequence[float]) -> Estimate:
    """Return exp(-sum of log-probabilities / sum of counts), with the delta method's standard error."""
    return _exp(negated(ratio(logprobs, counts)))


def negated(estimate: Estimate, scale: float = 1.0) -> Estimate:
    """Return minus the estimate, times a positive constant."""
    return Estimate(-estimate.value * scale, None if estimate.stderr is None else estimate.stderr * scale)


def macro_f1(golds: Sequence[int], predictions: Sequence[int], num_classes: int) -> Estimate:
    """Return the unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class without any counts 0.

    Each class's F1 is a ratio of sums over documents; the standard error is that of the mean, over documents, of the
    sum of the ratios' linearisations (`ratio`) / the number of classes.
    """
    gold_N, predicted_N = np.asarray(golds), np.asarray(predictions)
    value, influence_N = 0.0, np.zeros(len(gold_N))
    for label in range(num_classes):
        is_gold_N, is_predicted_N = gold_N == label, predicted_N == label
        twice_N = 2.0 * (is_gold_N & is_predicted_N)
        all_N = is_gold_N.astype(float) + is_predicted_N
        if all_N.sum():
            f1 = twice_N.sum() / all_N.sum()
            value += f1 / num_classes
            influence_N += (twice_N - f1 * all_N) / all_N.mean() / num_classes
    return Estimate(float(value), _stderr_of_mean(influence_N.tolist()))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples passes: 1 - C(n - c, k) / C(n, k).

    The product form of Chen et al. 2021 ("Evaluating Large Language Models Trained on Code"), which does not overflow.

    Raises:
      ValueError: fewer than k samples.
    """
    if samples < k:
        raise ValueError(f"pass@{k} of {samples} samples")
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(samples - passed + 1, samples + 1))


def count_words(text: str) -> int:
    """Return the words as the harness counts them: the parts between runs of white space, empty ones too."""
    return len(re.split(r"\s+", text))


def _exp(estimate: Estimate) -> Estimate:
    try:
        value = math.exp(estimate.value)
    except OverflowError:
        return Estimate(math.inf, None)
    return Estimate(value, None if estimate.stderr is None else value * estimate.stderr)


def _stderr_of_mean(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = sum(values) / len(values)
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
