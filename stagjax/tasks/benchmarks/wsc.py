"""The Winograd schema challenge (Levesque et al. 2012): does a pronoun refer to a noun?

Spans are those of the harness's data, where most that are not literally in their text were put right.
"""

import re

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import MultipleChoice
from stagjax.tasks.records import Document, Record

# Their subjects have other words between them: no span of the text says the same.
_SCATTERED = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")
# Tokens as they are separated by spaces, and as they are written.
_JOINED = ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"'))


def _document(record: Record) -> Document:
    target = record.record("target") if record.has("target") else record
    document = {
        "text": record.text("text"),
        "span1_index": target.integer("span1_index", 0),
        "span2_index": target.integer("span2_index", 0),
        "span1_text": target.text("span1_text", empty=False),
        "span2_text": target.text("span2_text", empty=False),
        "idx": record.integer("idx"),
        "label": record.label("label", superglue.BOOLEAN),
    }
    for span in ("span1", "span2"):
        index = document[f"{span}_index"]
        if index >= len(document["text"].split()):
            raise target.wrong(f"{span}_index", f"is {index}, and the text has {len(document['text'].split())} words")
        _correct(document, span)
    return document


def _correct(document: Document, span: str) -> None:
    """Make a span that is not in the text agree with it: its first letter's case, full stop, and white space."""
    text, index = document[f"{span}_text"], document[f"{span}_index"]
    if text in document["text"] or text in _SCATTERED:
        return
    if "theyscold" in text:  # One document lacks a space, and its index is off by it.
        document["span2_index"] = 10
    first = text[0].lower() if document["text"].split()[index][0].islower() else text[0].upper()
    document[f"{span}_text"] = f"{first}{text[1:]}".rstrip(".").replace("\n", " ")


def _question(document: Document) -> str:
    text, pronoun = document["text"], document["span2_text"]
    before = " ".join(text.split()[: document["span2_index"]])
    after = text[len(before) + len(pronoun) + 1 :]
    return (
        f"Passage: {_written(f'{before} *{pronoun}*{after}')}\n"
        f'Question: In the passage above, does the pronoun "*{pronoun}*" refer to "*{document["span1_text"]}*"?\n'
        "Answer:"
    )


def _written(text: str) -> str:
    """Return tokens as they are written, without the spaces between them and punctuation."""
    for tokens, joined in _JOINED:
        text = text.replace(tokens, joined)
    return re.sub(r" (['.,])", r"\1", text)


BENCHMARKS = (
    superglue.benchmark(
        "wsc",
        "WSC",
        MultipleChoice(_question, ("no", "yes"), lambda document: document["label"]),
        _document,
        (104, 554),
        prepared=("wsc.fixed", _document),
    ),
)
