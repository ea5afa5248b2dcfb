"""WinoGrande (Sakaguchi et al. 2019): which of two names fills the gap, judged by the text after it."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from stagjax.errors import DataError
from stagjax.tasks import prompts
from stagjax.tasks.benchmark import Benchmark, Prepared, Split
from stagjax.tasks.multiple_choice import ACC, score_choices
from stagjax.tasks.records import Document, Record, decoded, json_lines, lines
from stagjax.tasks.requests import Loglikelihood, LoglikelihoodRequest


@dataclasses.dataclass(frozen=True)
class Gap:
    """The text after the gap is scored under two contexts, one for each option (Trinh and Le 2018)."""

    scored: ClassVar[bool] = True

    def example(self, document: Document) -> str:
        """Return the sentence with the right option in the gap."""
        return prompts.example(_before(document)[int(document["answer"]) - 1], self.target(document))

    def requests(self, document: Document, examples: str) -> tuple[LoglikelihoodRequest, ...]:
        """Return a request for each option, all with one continuation."""
        continuation = prompts.ANSWER + self.target(document)
        return tuple(LoglikelihoodRequest(examples + before, continuation) for before in _before(document))

    def target(self, document: Document) -> str:
        """Return the text after the gap."""
        return document["sentence"].split("_", 1)[1].strip()

    def score(self, document: Document, answers: Sequence[Loglikelihood]) -> dict[str, Any]:
        """Return whether the right option makes the text after the gap more probable."""
        logprobs = [answer.logprob for answer in answers]
        scores = score_choices(logprobs, [1] * len(logprobs), int(document["answer"]) - 1)
        del scores["acc_norm"]  # Both continuations are the same text.
        return scores


def _before(document: Document) -> list[str]:
    before = document["sentence"].split("_", 1)[0]
    return [before + document["option1"], before + document["option2"]]


def _document(record: Record) -> Document:
    if "_" not in record.text("sentence"):
        raise record.wrong("sentence", 'has no gap ("_")')
    document = {name: record.text(name) for name in ("sentence", "option1", "option2")}
    return {**document, "answer": str(record.integer("answer", 1, 2))}


def _read(path: pathlib.Path) -> Iterator[Document]:
    """Yield the documents; the file of labels beside them, if there is one, has to say the same."""
    documents = list(json_lines(_document)(path))
    labels = path.with_name(f"{path.stem}-labels.lst")
    if labels.exists():
        found = [(number, decoded(line, f"{labels}:{number}").strip()) for number, line in lines(labels)]
        for (number, label), document in zip(found, documents, strict=False):
            if label != document["answer"]:
                raise DataError(
                    f"{labels}:{number}: the label is {label!r}, and field 'answer' in {path.name} is "
                    f"{document['answer']!r}; download both again"
                )
        if len(found) != len(documents):
            raise DataError(
                f"{labels}: {len(found)} labels for the {len(documents)} documents of {path.name}; download both again"
            )
    yield from documents


def _prepared(record: Record) -> Document:
    document = {name: record.text(name) for name in ("sentence", "option1", "option2")}
    return {**document, "answer": str(record.integer("label", 0, 1) + 1)}


BENCHMARKS = (
    Benchmark(
        name="winogrande",
        directory="winogrande",
        evaluated=Split("validation", ("dev.jsonl",), _read, 1267),
        pool=Split("train", ("train_xl.jsonl", "train_[lmsx]*.jsonl"), _read, 40398),
        form=Gap(),
        metrics=(ACC,),
        prepared=Prepared("winogrande", "validation", "train_xl", _prepared),
        origin="https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
    ),
)
