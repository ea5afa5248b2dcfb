"""Whether an answer is a given span of text, up to case, punctuation and articles: exact match, and F1 over words.

The rules of the official script of SQuAD (Rajpurkar et al. 2016), which ReCoRD shares.
"""

import collections
import re
import string
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and articles, its words separated by one space each."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(answer: str, truth: str) -> int:
    """Return 1 if the two are equal once they are normalised, else 0."""
    return int(normalised(answer) == normalised(truth))


def f1(answer: str, truth: str) -> float:
    """Return the F1 of common words; where one side has none, 1 if the other has none either, else 0."""
    words, true_words = normalised(answer).split(), normalised(truth).split()
    if not words or not true_words:
        return int(words == true_words)
    common = sum((collections.Counter(words) & collections.Counter(true_words)).values())
    if not common:
        return 0
    precision, recall = common / len(words), common / len(true_words)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], answer: str, truths: Iterable[str]) -> float:
    """Return the highest score over the right answers."""
    return max(score(answer, truth) for truth in truths)
