"""ReCoRD (Zhang et al. 2018): which entity of an article fills the gap. Every query is one document."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from stagjax.tasks import spans
from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice, score_choices
from stagjax.tasks.records import Document, Record, json_lines_of
from stagjax.tasks.requests import Loglikelihood
from stagjax.tasks.statistics import mean_metric


@dataclasses.dataclass(frozen=True)
class Entities(MultipleChoice):
    """The choices are entities, several of which can be right, and the chosen one is compared as a text."""

    def score(self, document: Document, answers: Sequence[Loglikelihood]) -> dict[str, Any]:
        """Return exact match and F1 of the most probable entity, the best over the right ones."""
        scores = score_choices([answer.logprob for answer in answers], [1] * len(answers), -1)
        chosen = document["entities"][scores["predicted"]]
        return {
            "f1": spans.best(spans.f1, chosen, document["answers"]),
            "em": spans.best(spans.exact, chosen, document["answers"]),
            "predicted": scores["predicted"],
        }


def _documents(record: Record) -> Iterator[Document]:
    passage = record.record("passage")
    text = passage.text("text")
    entities = [
        # Ends are inclusive.
        text[entity.integer("start", 0, len(text)) : entity.integer("end", 0, len(text)) + 1]
        for entity in passage.records("entities")
    ]
    if not entities:
        raise passage.wrong("entities", "is empty")
    for query in record.records("qas"):
        answers = [answer.text("text") for answer in query.records("answers")]
        if not answers:
            raise query.wrong("answers", "is empty")
        index = {"passage": record.integer("idx"), "query": query.integer("idx")}
        yield _made(text, query.text("query"), entities, answers, index)


def _prepared(record: Record) -> Document:
    index = record.record("idx")
    return _made(
        record.text("passage"),
        record.text("query"),
        record.texts("entities", at_least=1),
        record.texts("answers", at_least=1),
        {name: index.integer(name) for name in ("passage", "query")},
    )


def _made(passage: str, query: str, entities: list[str], answers: list[str], index: dict[str, int]) -> Document:
    return {
        "passage": passage,
        "query": query,
        "entities": sorted(set(entities)),
        "answers": sorted(set(answers)),
        "idx": index,
    }


def _question(document: Document) -> str:
    text, *highlights = document["passage"].strip().split("\n@highlight\n")
    return f"{text}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)


def _filled(document: Document, entity: str) -> str:
    return f"  - {document['query']}".replace("@placeholder", entity)


BENCHMARKS = (
    superglue.benchmark(
        "record",
        "ReCoRD",
        Entities(
            _question,
            lambda document: [_filled(document, entity) for entity in document["entities"]],
            lambda document: _filled(document, document["answers"][0]),
        ),
        _prepared,
        (10000, 100730),
        metrics=(mean_metric("f1"), mean_metric("em")),
        read=json_lines_of(_documents),
    ),
)
