"""WiC (Pilehvar and Camacho-Collados 2019): is a word used in the same way in two sentences?"""

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record


def _document(record: Record) -> Document:
    return {
        **{name: record.text(name) for name in ("word", "sentence1", "sentence2")},
        **{name: record.integer(name) for name in ("start1", "start2", "end1", "end2", "idx")},
        "label": record.label("label", superglue.BOOLEAN),
    }


def _question(document: Document) -> str:
    word = document["sentence1"][document["start1"] : document["end1"]]
    return (
        f"Sentence 1: {document['sentence1']}\nSentence 2: {document['sentence2']}\n"
        f"Question: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    )


BENCHMARKS = (
    superglue.benchmark(
        "wic",
        "WiC",
        MultipleChoice(_question, ("no", "yes"), lambda document: document["label"]),
        _document,
        (638, 5428),
    ),
)
