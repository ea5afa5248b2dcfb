"""BoolQ (Clark et al. 2019): yes-no questions on a passage."""

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record


def _document(record: Record) -> Document:
    return {
        "question": record.text("question"),
        "passage": record.text("passage"),
        "idx": record.integer("idx"),
        "label": record.label("label", superglue.BOOLEAN),
    }


BENCHMARKS = (
    superglue.benchmark(
        "boolq",
        "BoolQ",
        MultipleChoice(
            lambda document: f"{document['passage']}\nQuestion: {document['question']}?\nAnswer:",
            ("no", "yes"),
            lambda document: document["label"],
        ),
        _document,
        (3270, 9427),
    ),
)
