"""Validation: sums over rows become loss and bits per byte, of all documents and of each subset."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from stagjax.config import Config, MeshConfig
from stagjax.data.corpus import Corpus, load_corpus
from stagjax.data.loader import validation_batches
from stagjax.data.manifest import Manifest, differences
from stagjax.data.shards import subset_label
from stagjax.data.vocabulary import Vocabulary
from stagjax.errors import UserError
from stagjax.mesh import training_mesh
from stagjax.model.stagformer import Params
from stagjax.training.placing import gathered, own_rows, placed
from stagjax.training.step import validation_program

_SUMS = ("nats", "tokens", "bytes")


class SubsetSums:
    """Adds up what the validation step returns for each row, by the row's subset.

    Args:
      subsets: their names, by index; "", which no name is, stands for documents of none.
    """

    def __init__(self, subsets: Sequence[str]):
        self._subsets = list(subsets)
        self._sums = {name: np.zeros(len(subsets)) for name in _SUMS}

    def add(self, sums: Mapping[str, np.ndarray], subsets_B: np.ndarray) -> None:
        """Add a batch.

        Args:
          sums: "nats", "tokens" and "bytes" of each row, [B]; 0 where a row is padding.
          subsets_B: index of each row's subset.
        """
        for name in _SUMS:
            weights = np.asarray(sums[name], np.float64)
            self._sums[name] += np.bincount(subsets_B, weights, minlength=len(self._subsets))

    def total(self) -> dict[str, float]:
        """Return "loss", in nats a token, and "bits_per_byte", over UTF-8 bytes of the texts, of all rows."""
        return _figures(*(values.sum() for values in self._sums.values()))

    def by_subset(self) -> dict[str, dict[str, float]]:
        """Return the same of each subset that has rows; nothing where there is one subset for all."""
        if len(self._subsets) < 2:
            return {}
        columns = zip(self._subsets, *self._sums.values(), strict=True)
        return {name: _figures(*sums) for name, *sums in columns if sums[1]}

    def metrics(self) -> dict[str, float]:
        """Return all of it by the names under which it is logged, e.g. "validation/Github/loss".

        Those of documents without a subset are "validation//loss" and so on.
        """
        named = {f"validation/{name}": value for name, value in self.total().items()}
        for subset, figures in self.by_subset().items():
            named |= {f"validation/{subset}/{name}": value for name, value in figures.items()}
        return named

    def lines(self, step: int) -> list[str]:
        """Return lines that tell a person: of all rows, then of each subset."""
        lines = [f"step {step}: validation {_text(self.total())}"]
        subsets = [(subset_label(name), figures) for name, figures in self.by_subset().items()]
        width = max((len(label) for label, _ in subsets), default=0)
        return lines + [f"  {label:{width}}  {_text(figures)}" for label, figures in subsets]


class Validator:
    """Sums the validation loss of parameters by subset, on a mesh; its step is compiled when it is made.

    Args:
      config: the experiment; `training.validation_rows` names the rows.
      mesh: of training.
      corpus: whose validation rows are read, by each host its own.
    """

    def __init__(self, config: Config, mesh: Mesh, corpus: Corpus):
        step, arguments = validation_program(config, mesh)
        _, self._batch, lengths = arguments
        self._step = step.lower(*arguments).compile()
        self._byte_lengths_V = placed_byte_lengths(corpus.vocabulary, lengths)
        self._config, self._corpus = config, corpus

    def __call__(self, params: Params) -> SubsetSums:
        """Return the sums over all rows; all hosts call, and get the same."""
        training, whole = self._config.training, self._batch["inputs"]
        batches = validation_batches(self._corpus.validation, whole.shape[0], training.validation_rows, own_rows(whole))
        sums = SubsetSums(self._corpus.subsets)
        for batch in batches:
            subsets_B = gathered(batch.pop("subsets"), whole)
            sums.add(self._step(params, placed(batch, self._batch), self._byte_lengths_V), subsets_B)
        return sums


def placed_byte_lengths(vocabulary: Vocabulary, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Return the UTF-8 bytes of each id, as a step takes them: 0 for ids that the vocabulary does not have."""
    byte_lengths_V = np.zeros(abstract.shape, abstract.dtype)
    byte_lengths_V[: vocabulary.size] = vocabulary.byte_lengths
    return placed(byte_lengths_V, abstract)


def validate(models: Sequence[tuple[Config, Params]], manifest: Manifest) -> list[dict[str, float]]:
    """Return "loss" and "bits_per_byte" of models outside of a run, on the corpus of the first, on one device.

    Args:
      models: (config, params) of each; their data sections are alike.
      manifest: of the corpus that is meant.

    Raises:
      UserError: the corpus cannot be loaded, or is another one.
    """
    first = models[0][0]
    corpus = load_corpus(first.data, first.model.vocab_size)
    if lines := differences(manifest, corpus.manifest):
        raise UserError(f"data.source={first.data.source!r} is not what the model was trained on: {'; '.join(lines)}")
    mesh = training_mesh(MeshConfig(), jax.devices()[:1])
    return [Validator(config, mesh, corpus)(params).total() for config, params in models]


def _figures(nats: float, tokens: float, num_bytes: float) -> dict[str, float]:
    return {"loss": float(nats / tokens), "bits_per_byte": float(nats / math.log(2) / num_bytes)}


def _text(figures: Mapping[str, float]) -> str:
    return f"loss {figures['loss']:.4f}, {figures['bits_per_byte']:.4f} bits per byte"
