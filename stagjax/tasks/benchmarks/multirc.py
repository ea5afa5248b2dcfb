r"""MultiRC (Khashabi et al. 2018): is this an answer to a question on a paragraph? Every answer is one document.

As in the harness, the accuracy is plain, over answers, and the first choice ("yes") is right where the label is 0, a
wrong answer: there the labels of this benchmark are the wrong way round, in examples and in scores.
"""

import ast
import warnings
from collections.abc import Iterator

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record, json_lines_of

VERDICTS = ("yes", "no")


def _documents(record: Record) -> Iterator[Document]:
    passage = record.record("passage")
    for question in passage.records("questions"):
        for answer in question.records("answers"):
            yield {
                "paragraph": passage.text("text"),
                "question": question.text("question"),
                "answer": answer.text("text"),
                "idx": {
                    "paragraph": record.integer("idx"),
                    "question": question.integer("idx"),
                    "answer": answer.integer("idx"),
                },
                "label": answer.label("label", superglue.BOOLEAN),
            }


def _prepared(record: Record) -> Document:
    index = record.record("idx")
    return {
        **{name: record.text(name) for name in ("paragraph", "question", "answer")},
        "idx": {name: index.integer(name) for name in ("paragraph", "question", "answer")},
        "label": record.label("label", superglue.BOOLEAN),
    }


def _choices(document: Document) -> list[str]:
    """Return the answer with each verdict.

    The harness writes them as string literals of Python and evaluates these, so that a backslash in an answer begins an
    escape; an answer that makes no two literals stays as it is.
    """
    written = [f"{document['answer']}\\nIs the answer correct? {verdict}" for verdict in VERDICTS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Unknown escapes.
            choices = ast.literal_eval("['''{}''', '''{}''']".format(*written))
    except (SyntaxError, ValueError):
        choices = None
    if isinstance(choices, list) and len(choices) == 2 and all(isinstance(choice, str) for choice in choices):
        return choices
    return [f"{document['answer']}\nIs the answer correct? {verdict}" for verdict in VERDICTS]


BENCHMARKS = (
    superglue.benchmark(
        "multirc",
        "MultiRC",
        MultipleChoice(
            lambda document: f"{document['paragraph']}\nQuestion: {document['question']}\nAnswer:",
            _choices,
            lambda document: document["label"],
        ),
        _prepared,
        (4848, 27243),
        read=json_lines_of(_documents),
    ),
)
