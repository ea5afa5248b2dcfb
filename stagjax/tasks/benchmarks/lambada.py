"""LAMBADA (Paperno et al. 2016): the last word of a passage, in the field's two forms, each also as a cloze.

`lambada_openai` is the text as OpenAI put it for GPT-2, with its case, punctuation and line breaks; `lambada_standard`
the original release, in lower case with its tokens separated by spaces. The `_cloze` variants mark the gap, as for
GPT-3.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from stagjax.tasks import prompts
from stagjax.tasks.benchmark import Benchmark, Prepared, Split
from stagjax.tasks.records import Document, Record, decoded, json_lines, lines
from stagjax.tasks.requests import Loglikelihood, LoglikelihoodRequest
from stagjax.tasks.statistics import Metric, mean_metric, perplexity

_OPENAI = Split(
    "test",
    ("lambada_test.jsonl",),
    json_lines(lambda record: {"text": record.text("text", empty=False)}),
    5153,
    "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)
ACC = mean_metric("acc", optional=True)
PERPLEXITY = Metric(
    "perplexity",
    lambda scores: perplexity([score["logprob"] for score in scores]),
    higher_is_better=False,
    perfect=None,
)


@dataclasses.dataclass(frozen=True)
class LastWord:
    """The last word is whatever follows the last space.

    Attributes:
      gap: text between what comes before and the last word.
    """

    scored: ClassVar[bool] = True

    gap: str = ""

    def example(self, document: Document) -> str:
        """Return the passage; the harness puts a second space before the last word."""
        return prompts.example(self._before(document), self.target(document))

    def requests(self, document: Document, examples: str) -> tuple[LoglikelihoodRequest, ...]:
        """Return one request: the last word after the others."""
        return (LoglikelihoodRequest(examples + self._before(document), self.target(document)),)

    def target(self, document: Document) -> str:
        """Return a space and the last word."""
        return f" {document['text'].split(' ')[-1]}"

    def score(self, document: Document, answers: Sequence[Loglikelihood]) -> dict[str, Any]:
        """Return the word's log-probability, and whether greedy decoding would say it, if that is known."""
        (answer,) = answers
        return {"logprob": answer.logprob, **({} if answer.is_greedy is None else {"acc": int(answer.is_greedy)})}

    def _before(self, document: Document) -> str:
        return " ".join(document["text"].split(" ")[:-1]) + self.gap


def _plain_lines(path: pathlib.Path) -> Iterator[Document]:
    for number, line in lines(path):
        yield {"text": decoded(line, f"{path}:{number}").strip()}


def _prepared(record: Record) -> Document:
    return {"text": record.text("passage").strip()}


def _openai(name: str, form: LastWord) -> Benchmark:
    return Benchmark(
        name=name,
        directory="lambada",
        evaluated=_OPENAI,
        pool=None,
        form=form,
        metrics=(ACC, PERPLEXITY),
        draw="any",
        origin="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    )


def _standard(name: str, form: LastWord) -> Benchmark:
    return Benchmark(
        name=name,
        directory="lambada",
        evaluated=Split("test", ("lambada_test_plain_text.txt",), _plain_lines, 5153),
        pool=Split("validation", ("lambada_development_plain_text.txt",), _plain_lines, 4869),
        form=form,
        metrics=(ACC, PERPLEXITY),
        draw="any",
        prepared=Prepared("lambada", "test", "train", _prepared),
        origin="https://zenodo.org/record/2630551/files/lambada-dataset.tar.gz",
    )


CLOZE = LastWord(" ____. ->")
BENCHMARKS = (
    _openai("lambada_openai", LastWord()),
    _standard("lambada_standard", LastWord()),
    _openai("lambada_openai_cloze", CLOZE),
    _standard("lambada_standard_cloze", CLOZE),
)
