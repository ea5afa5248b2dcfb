"""A benchmark: documents in official files, what they ask of a model, and how answers become metrics. No TensorFlow.

    benchmark = catalog.get("hellaswag")
    data = load(benchmark, "data", pool=True)         # raises DataError: missing or malformed files
    items = benchmark.items(data, shots=5)            # prompts; examples are drawn as the harness draws them
    answers = [...]                                   # for each item, one answer to each of item.requests, in order
    scores = [benchmark.score(item.document, found) for item, found in zip(items, answers)]
    benchmark.aggregate(scores)                       # {"acc": Estimate(value, stderr), "acc_norm": ...}

Where a benchmark executes programs (`benchmark.programs` is not None), run `benchmark.programs(document, answers)` in a
sandbox between answers and scores, and add `Outcomes(passed)` to the document's answers. A `score` is a flat dict of
plain values, fit for a log of samples. `items[n].requests` are the texts that the model sees; nothing else is added to
them but BOS.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from stagjax.errors import DataError
from stagjax.tasks.fewshot import SEED, Draw, Sampler
from stagjax.tasks.records import Document, Reader
from stagjax.tasks.requests import Answer, GenerationRequest, Request
from stagjax.tasks.statistics import Estimate, Metric

Score = Mapping[str, Any]
# Where official files lie if nothing else is said.
DATA_VARIABLE, DATA_DEFAULT = "STAGJAX_DATA_DIR", "data"


class Form(Protocol):
    """What documents ask, and how the answers are scored: one of these for each kind of benchmark.

    Attributes:
      scored: whether all requests are of log-probabilities, none of generated text.
    """

    scored: ClassVar[bool]

    def example(self, document: Document) -> str:
        """Return a document as one example of a few-shot prompt, with the blank line after it."""

    def requests(self, document: Document, examples: str) -> tuple[Request, ...]:
        """Return what is asked of the model about a document, after the examples."""

    def target(self, document: Document) -> int | str:
        """Return the right answer: a choice's index, or a text."""

    def score(self, document: Document, answers: Sequence[Answer]) -> Score:
        """Return the scores of a document."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents of one official file.

    Attributes:
      name: of the split, as the benchmark's authors call it.
      files: names or patterns of the file in the benchmark's directory; the first that exists is read, and only the
        first is official.
      read: path -> documents in order; raises `DataError`.
      documents: of the whole official file, None where it is not known.
      sha256: of the whole official file, None where nobody publishes it.
    """

    name: str
    files: tuple[str, ...]
    read: Reader
    documents: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """See the module's docstring.

    Attributes:
      name: by which it is called everywhere.
      directory: of its files, below the data directory.
      evaluated: the split that is scored.
      pool: the split that few-shot examples are drawn from; the evaluated one if None; or the examples themselves.
      form: what is asked, and how it is scored.
      metrics: the first is the one that tables show.
      draw: how examples are drawn.
      shots: examples by default: what the harness takes where nothing is said.
      programs: document and answers -> a program for each sample, where answers have to be executed.
      prepared: where tensorflow-datasets has it, see `stagjax.tasks.prepared`.
      origin: where to get the official files.
    """

    name: str
    directory: str
    evaluated: Split
    pool: Split | tuple[Document, ...] | None
    form: Form
    metrics: tuple[Metric, ...]
    draw: Draw = "other"
    shots: int = 0
    programs: Callable[[Document, Sequence[Answer]], tuple[str, ...]] | None = None
    prepared: "Prepared | None" = None
    origin: str = ""

    def items(
        self,
        data: "Data",
        shots: int | None = None,
        seed: int = SEED,
        limit: int | None = None,
        samples: int = 1,
        temperature: float = 0.0,
    ) -> list["Item"]:
        """Return the prompts of the first `limit` documents, all by default.

        Args:
          data: from `load`, with a pool if `shots` is not 0.
          shots: examples in a prompt, `self.shots` by default.
          seed: of the generator that draws them.
          limit: documents evaluated; the examples of these do not depend on it.
          samples: answers to each generation request.
          temperature: of generation, 0 is greedy.

        Raises:
          UserError: more shots than there are examples.
        """
        shots = self.shots if shots is None else shots
        sampler = Sampler(data.pool if shots else (), shots, self.draw, seed)
        items = []
        for index, document in enumerate(data.documents[:limit]):
            drawn = sampler.draw(document)
            examples = "".join(self.form.example(data.pool[position]) for position in drawn)
            requests = tuple(
                dataclasses.replace(request, samples=samples, temperature=temperature)
                if isinstance(request, GenerationRequest)
                else request
                for request in self.form.requests(document, examples)
            )
            items.append(Item(index, document, tuple(drawn), requests))
        return items

    def shots_of(self, shots: int | None) -> int:
        """Return the shots where a group of benchmarks is asked with `shots`, None for the default ones.

        Those that have examples of their own, or none, keep theirs.
        """
        return self.shots if shots is None or isinstance(self.pool, tuple) else shots

    def score(self, document: Document, answers: Sequence[Answer]) -> Score:
        """Return a document's scores from the answers to its requests, in order, with `Outcomes` after them if any."""
        return self.form.score(document, answers)

    def aggregate(self, scores: Sequence[Score]) -> dict[str, Estimate]:
        """Return the metrics of scored documents.

        Where scores name a subset, each metric is there for all documents, and as "SUBSET/METRIC" for each subset; as
        "/METRIC" for the documents that name none.
        """
        estimates = {metric.name: metric.aggregate(scores) for metric in self._measured(scores)}
        subsets = {score["subset"] for score in scores if "subset" in score}
        for subset in sorted(subsets) if subsets != {""} else ():
            part = [score for score in scores if score["subset"] == subset]
            estimates |= {f"{subset}/{metric.name}": metric.aggregate(part) for metric in self._measured(part)}
        return estimates

    def _measured(self, scores: Sequence[Score]) -> Iterable[Metric]:
        # pass@10 of 5 samples is not measured.
        return (m for m in self.metrics if not m.optional or all(m.name in score for score in scores))


class Item(NamedTuple):
    """A document and its prompts.

    Attributes:
      index: of the document in its split.
      document: as read from the file.
      examples: positions in the pool of the few-shot examples.
      requests: what the model is asked.
    """

    index: int
    document: Document
    examples: tuple[int, ...]
    requests: tuple[Request, ...]


class Source(NamedTuple):
    """A file that was read, for reports.

    Attributes:
      split: its name.
      path: of the file, or the name of the prepared dataset.
      documents: found in it.
      expected: in the whole official file, None if not known.
      sha256: of the file, "" for a prepared dataset.
      verified: True: the official file, by its hash; False: as many documents, but another hash; None: the official
        hash is not known, or the file is partial.
    """

    split: str
    path: str
    documents: int
    expected: int | None
    sha256: str
    verified: bool | None

    @property
    def partial(self) -> bool:
        """Whether documents are missing."""
        return self.expected is not None and self.documents < self.expected

    def describe(self) -> str:
        """Return e.g. "200 of 10,042 documents"."""
        if self.partial:
            return f"{self.documents:,} of {self.expected:,} documents"
        known = {True: ", the official file", False: ", not the official file (its hash differs)", None: ""}
        return f"{self.documents:,} documents{known[self.verified]}"


class Data(NamedTuple):
    """The documents of a benchmark.

    Attributes:
      documents: of the evaluated split, in order.
      pool: to draw examples from; empty unless asked for.
      sources: the files that were read.
    """

    documents: Sequence[Document]
    pool: Sequence[Document]
    sources: tuple[Source, ...]


class Prepared(NamedTuple):
    """A dataset of tensorflow-datasets.

    Attributes:
      name: e.g. "super_glue/boolq".
      evaluated: its split that is evaluated.
      pool: its split to draw examples from, None where the benchmark draws from the evaluated one or has its own.
      document: its record -> document; raises `DataError`.
    """

    name: str
    evaluated: str
    pool: str | None
    document: Callable[[Any], Document]


def data_directory(named: str | None = None) -> str:
    """Return the data directory: the one that is named, else the environment's STAGJAX_DATA_DIR, else "data"."""
    return named or os.environ.get(DATA_VARIABLE) or DATA_DEFAULT


def load(benchmark: Benchmark, directory: str | os.PathLike[str], pool: bool = True) -> Data:
    """Read the official files of a benchmark.

    Args:
      benchmark: whose.
      directory: the data directory, which has the benchmark's directory in it.
      pool: whether to read what few-shot examples are drawn from.

    Raises:
      DataError: a file is missing, or malformed.
    """
    documents, source = read_split(benchmark, benchmark.evaluated, directory)
    sources = [source]
    examples: Sequence[Document] = ()
    if pool and isinstance(benchmark.pool, Split):
        examples, source = read_split(benchmark, benchmark.pool, directory)
        sources.append(source)
    elif pool:
        examples = documents if benchmark.pool is None else benchmark.pool
    return Data(documents, examples, tuple(sources))


def read_split(benchmark: Benchmark, split: Split, directory: str | os.PathLike[str]) -> tuple[list[Document], Source]:
    """Return the documents of a split, and what was read; raises `DataError`."""
    path = find(benchmark, split, directory)
    documents = list(split.read(path))
    if not documents:
        raise DataError(f"{path}: no documents; download {benchmark.name} again{_from(benchmark)}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    whole = split.documents is None or len(documents) >= split.documents
    verified = found == split.sha256 if split.sha256 and whole else None
    return documents, Source(split.name, str(path), len(documents), split.documents, found, verified)


def find(benchmark: Benchmark, split: Split, directory: str | os.PathLike[str]) -> pathlib.Path:
    """Return the file of a split; raises `DataError` where there is none."""
    folder = pathlib.Path(directory, benchmark.directory)
    for pattern in split.files:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                return path
    raise DataError(
        f"{folder / split.files[0]} is missing ({benchmark.name}, {split.name} split); put it there{_from(benchmark)}"
    )


def _from(benchmark: Benchmark) -> str:
    return f" ({benchmark.origin})" if benchmark.origin else ""
