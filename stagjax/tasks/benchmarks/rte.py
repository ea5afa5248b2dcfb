"""RTE (Dagan et al. 2005 and later challenges): does a text entail a statement?"""

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record


def _document(record: Record) -> Document:
    return {
        "premise": record.text("premise"),
        "hypothesis": record.text("hypothesis"),
        "idx": record.integer("idx"),
        "label": record.label("label", ("entailment", "not_entailment")),
    }


BENCHMARKS = (
    superglue.benchmark(
        "rte",
        "RTE",
        MultipleChoice(
            lambda document: f"{document['premise']}\nQuestion: {document['hypothesis']} True or False?\nAnswer:",
            ("True", "False"),
            lambda document: document["label"],
        ),
        _document,
        (277, 2490),
    ),
)
