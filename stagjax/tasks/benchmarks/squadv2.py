"""SQuAD 2.0 (Rajpurkar et al. 2018): questions on a paragraph, half of which have no answer in it.

The model generates a line; besides, the probability of " unanswerable" serves as that of there being no answer.
`best_*` take the threshold on it under which the score is highest, as the official script does.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from stagjax.tasks import prompts, spans
from stagjax.tasks.benchmark import Benchmark, Prepared, Split
from stagjax.tasks.records import Document, Record, json_file
from stagjax.tasks.requests import Answers, GenerationRequest, Loglikelihood, LoglikelihoodRequest, Request
from stagjax.tasks.statistics import Estimate, Metric, Scores, mean

UNANSWERABLE = " unanswerable"


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A line of answer, and how probable it is that there is none."""

    scored: ClassVar[bool] = False

    def example(self, document: Document) -> str:
        """Return the question with the first answer; after two spaces, as in the harness."""
        return prompts.example(_question(document), self.target(document))

    def requests(self, document: Document, examples: str) -> tuple[Request, ...]:
        """Return the two requests: the line, and the probability of there being no answer."""
        context = examples + _question(document)
        return GenerationRequest(context, stop=("\n",)), LoglikelihoodRequest(context, UNANSWERABLE)

    def target(self, document: Document) -> str:
        """Return the first of the right answers."""
        return f" {document['answers'][0]}" if document["answers"] else UNANSWERABLE

    def score(self, document: Document, answers: Sequence[Answers | Loglikelihood]) -> dict[str, Any]:
        """Return exact match and F1, in 0..1 and the best over the right answers, and what `best_*` need."""
        generated, unanswerable = answers
        text = generated.texts[0]
        # Answers that are nothing but punctuation or articles do not count; without answers the empty text is right.
        truths = [answer for answer in document["answers"] if spans.normalised(answer)] or [""]
        # The official metric keeps probabilities in single precision: that decides which ones are equal.
        probability = float(np.float32(math.exp(unanswerable.logprob)))
        return {
            "id": document["id"],
            "exact": spans.best(spans.exact, text, truths),
            "f1": spans.best(spans.f1, text, truths),
            "has_answer": bool(document["answers"]),
            "answered": bool(text),
            "no_answer_probability": probability,
        }


def _question(document: Document) -> str:
    return (
        f"Title: {document['title']}\n\nBackground: {document['context']}\n\n"
        f"Question: {document['question']}\n\nAnswer:"
    )


def _documents(record: Record) -> Iterator[Document]:
    for article in record.records("data"):
        title = article.text("title") if article.has("title") else ""
        for paragraph in article.records("paragraphs"):
            for question in paragraph.records("qas"):
                yield {
                    "id": question.text("id"),
                    "title": title,
                    "context": paragraph.text("context"),
                    "question": question.text("question"),
                    "answers": [answer.text("text") for answer in question.records("answers")],
                }


def _prepared(record: Record) -> Document:
    texts = {name: record.text(name) for name in ("id", "title", "context", "question")}
    return {**texts, "answers": record.record("answers").texts("text")}


def _distinct(scores: Scores) -> list[dict[str, Any]]:
    # As the official script: of documents with one id, the last counts, at the first one's place.
    return list({score["id"]: score for score in scores}.values())


def _percent(name: str, chosen: Callable[[Any], bool] = lambda score: True) -> Callable[[Scores], Estimate]:
    def aggregate(scores: Scores) -> Estimate:
        values = [100.0 * score[name] for score in _distinct(scores) if chosen(score)]
        return mean(values) if values else Estimate(0.0, None)

    return aggregate


def _best(name: str) -> Callable[[Scores], Estimate]:
    """Return the aggregate under the best threshold; its standard error takes that threshold as given."""

    def aggregate(scores: Scores) -> Estimate:
        ranked = sorted(_distinct(scores), key=lambda score: score["no_answer_probability"])
        # What saying nothing would score, then the change that each answer, in order, would make.
        silent = [float(not score["has_answer"]) for score in ranked]
        spoken = [score[name] if score["has_answer"] else float(not score["answered"]) for score in ranked]
        total = best = sum(silent)
        answered = 0
        for number, (without, with_answer) in enumerate(zip(silent, spoken, strict=True), 1):
            total += with_answer - without
            if total > best:
                best, answered = total, number
        values = spoken[:answered] + silent[answered:]
        return Estimate(100.0 * best / len(ranked), mean([100.0 * value for value in values]).stderr)

    return aggregate


def _metrics() -> tuple[Metric, ...]:
    def metric(name: str, aggregate: Callable[[Scores], Estimate]) -> Metric:
        return Metric(name, aggregate, perfect=100.0)

    return (
        metric("f1", _percent("f1")),
        metric("exact", _percent("exact")),
        metric("HasAns_exact", _percent("exact", lambda score: score["has_answer"])),
        metric("HasAns_f1", _percent("f1", lambda score: score["has_answer"])),
        metric("NoAns_exact", _percent("exact", lambda score: not score["has_answer"])),
        metric("NoAns_f1", _percent("f1", lambda score: not score["has_answer"])),
        metric("best_exact", _best("exact")),
        metric("best_f1", _best("f1")),
    )


BENCHMARKS = (
    Benchmark(
        name="squadv2",
        directory="squadv2",
        evaluated=Split(
            "validation",
            ("dev-v2.0.json",),
            json_file(_documents),
            11873,
            "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
        ),
        pool=Split(
            "train",
            ("train-v2.0.json", "fewshot-pool*.json"),
            json_file(_documents),
            130319,
            "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
        ),
        form=Extraction(),
        metrics=_metrics(),
        prepared=Prepared("squad/v2.0", "validation", "train", _prepared),
        origin="https://rajpurkar.github.io/SQuAD-explorer/",
    ),
)
