"""The Pile (Gao et al. 2020): how well held-out documents are predicted, in all and by subset."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from stagjax.data.shards import subset_of
from stagjax.data.sources import JSONL_SUFFIXES
from stagjax.tasks.benchmark import Benchmark, Split
from stagjax.tasks.records import Document, Record, json_lines
from stagjax.tasks.requests import Loglikelihood, RollingRequest
from stagjax.tasks.statistics import Metric, Scores, count_words, negated, ratio, ratio_perplexity

# As it was published first.
_SUFFIXES = (".jsonl.zst", *(suffix for suffix in JSONL_SUFFIXES if suffix != ".jsonl.zst"))


@dataclasses.dataclass(frozen=True)
class Rolling:
    """A whole document is scored, each of its tokens once; how much each of them sees is the scorer's rule."""

    scored: ClassVar[bool] = True

    def example(self, document: Document) -> str:
        """Return the document; there are no examples to draw, so none is ever asked for."""
        return document["text"]

    def requests(self, document: Document, examples: str) -> tuple[RollingRequest, ...]:
        """Return one request for the document."""
        return (RollingRequest(examples + document["text"]),)

    def target(self, document: Document) -> str:
        """Return the document."""
        return document["text"]

    def score(self, document: Document, answers: Sequence[Loglikelihood]) -> dict[str, Any]:
        """Return the sums that perplexities are made of; bytes and words are the text's, without its end."""
        text = document["text"]
        return {
            "subset": document["subset"],
            "logprob": answers[0].logprob,
            "tokens": answers[0].num_tokens,
            "bytes": len(text.encode()),
            "words": count_words(text),
        }


def _document(record: Record) -> Document:
    return {"text": record.text("text"), "subset": subset_of(record.value.get("meta"))}


def _sums(scores: Scores, count: str) -> tuple[list[float], list[float]]:
    return [score["logprob"] for score in scores], [score[count] for score in scores]


def _benchmark(name: str, split: str, file: str) -> Benchmark:
    def metric(name, aggregate):
        return Metric(name, aggregate, higher_is_better=False, perfect=None)

    return Benchmark(
        name=name,
        directory="pile",
        evaluated=Split(split, tuple(f"{file}{suffix}" for suffix in _SUFFIXES), json_lines(_document)),
        pool=(),
        form=Rolling(),
        metrics=(
            metric("bits_per_byte", lambda scores: negated(ratio(*_sums(scores, "bytes")), 1 / math.log(2))),
            metric("nats_per_token", lambda scores: negated(ratio(*_sums(scores, "tokens")))),
            metric("byte_perplexity", lambda scores: ratio_perplexity(*_sums(scores, "bytes"))),
            metric("word_perplexity", lambda scores: ratio_perplexity(*_sums(scores, "words"))),
        ),
        draw="any",
    )


BENCHMARKS = (_benchmark("pile", "validation", "val"), _benchmark("pile_test", "test", "test"))
