"""COPA (Roemmele et al. 2011): which of two sentences is the cause, or the effect."""

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record

CONNECTORS = {"cause": "because", "effect": "therefore"}
LABELS = ("choice1", "choice2")


def _document(record: Record) -> Document:
    question = list(CONNECTORS)[record.label("question", tuple(CONNECTORS))]
    return {
        "premise": record.text("premise"),
        "choice1": record.text("choice1", empty=False),
        "choice2": record.text("choice2", empty=False),
        "question": question,
        "idx": record.integer("idx"),
        "label": record.label("label", LABELS),
    }


def _question(document: Document) -> str:
    # The premise's last character is its full stop.
    return f"{document['premise'].strip()[:-1]} {CONNECTORS[document['question']]}"


def _clause(sentence: str) -> str:
    # The space comes on top of the one before every choice: the harness's prompts have two.
    return f" {sentence[0].lower()}{sentence[1:]}"


BENCHMARKS = (
    superglue.benchmark(
        "copa",
        "COPA",
        MultipleChoice(
            _question,
            lambda document: [_clause(document[name]) for name in LABELS],
            # A text: of two equal choices the first is the right one.
            lambda document: _clause(document[LABELS[document["label"]]]),
        ),
        _document,
        (100, 400),
    ),
)
