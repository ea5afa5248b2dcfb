"""The registry of seqio tasks: their names, where each is defined, and the vocabulary that all of them share."""

import importlib
from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from stagjax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from stagjax.errors import unknown
from stagjax.tasks import catalog

# Name of a pretraining task to the module that registers it when it is imported.
PRETRAINING = {
    "stagjax_stdlib": "stagjax.tasks.pretraining",
}


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks: of pretraining, and the benchmarks."""
    return (*PRETRAINING, *catalog.all_benchmarks())


def get_task(
    name: str, shots: int | None = None, directory: str | None = None, vocabulary: str = "bytes"
) -> seqio.Task:
    """Return a task; it is registered if need be.

    Args:
      name: e.g. "stagjax_stdlib", or a benchmark's; the others are for these.
      shots: examples in a prompt; by default the benchmark's.
      directory: of official files, by default the environment's STAGJAX_DATA_DIR, or data.
      vocabulary: as in an experiment's data.vocabulary.

    Raises:
      UserError: there is no such task; the known ones are listed. Or the vocabulary cannot be read.
    """
    if name in PRETRAINING:
        importlib.import_module(PRETRAINING[name])
        return seqio.TaskRegistry.get(name)
    if name not in catalog.all_benchmarks():
        raise unknown("task", name, task_names())
    evaluating = importlib.import_module("stagjax.tasks.evaluating")
    benchmark = catalog.get(name)
    full_name = evaluating.task_name(benchmark, shots, directory, vocabulary)
    if full_name not in seqio.TaskRegistry.names():
        shots = benchmark.shots if shots is None else shots
        evaluating.register(full_name, benchmark, shots, directory, vocabulary)
    return seqio.TaskRegistry.get(full_name)


def get_mixture(
    name: str, shots: int | None = None, directory: str | None = None, vocabulary: str = "bytes"
) -> seqio.Mixture:
    """Return the mixture of a group of benchmarks, "superglue", "paper" or "all"; it is registered if need be.

    Benchmarks whose examples are their own (MBPP), or that have none (The Pile), keep their number of shots. Evaluate
    its tasks one by one, as seqio's evaluator does: a mixture samples from them, and ends with the first that does.

    Raises:
      UserError: there is no such group, or the vocabulary cannot be read.
    """
    if name not in catalog.groups():
        raise unknown("mixture", name, catalog.groups())
    evaluating = importlib.import_module("stagjax.tasks.evaluating")
    full_name = evaluating.mixture_name(name, shots, directory, vocabulary)
    if full_name not in seqio.MixtureRegistry.names():
        members = catalog.select([name])
        tasks = [get_task(b.name, b.shots_of(shots), directory, vocabulary).name for b in members]
        evaluating.register_mixture(full_name, tasks)
    return seqio.MixtureRegistry.get(full_name)


class SeqioVocabulary(seqio.Vocabulary):
    """One of our vocabularies as seqio wants it.

    TensorFlow hands the text back to Python: its own SentencePiece operator gives other ids for many texts.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        super().__init__()

    @property
    def bos_id(self) -> int:
        """1."""
        return BOS

    @property
    def eos_id(self) -> int:
        """2."""
        return EOS

    @property
    def pad_id(self) -> int:
        """0."""
        return PAD

    @property
    def unk_id(self) -> None:
        """None: nothing is unknown, and seqio would replace ids by it."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.vocabulary.encode(s).tolist()

    def _decode(self, ids: Iterable[int]) -> str:
        return self.vocabulary.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        ids = tf.numpy_function(self._encode_bytes, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
        # Eager execution passes an array without dimensions, a graph the bytes themselves.
        return self.vocabulary.encode((text.item() if isinstance(text, np.ndarray) else text).decode())

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        rows = ids[tf.newaxis] if ids.shape.rank == 1 else ids
        texts = tf.numpy_function(self._decode_rows, [rows], tf.string)
        texts.set_shape([None])
        return texts[0] if ids.shape.rank == 1 else texts

    def _decode_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.vocabulary.decode(row).encode() for row in rows], object)

    def __eq__(self, other: object) -> bool:
        """Compare fingerprints: seqio mixes only tasks whose vocabularies are equal."""
        return isinstance(other, SeqioVocabulary) and self.vocabulary.fingerprint == other.vocabulary.fingerprint

    def __hash__(self) -> int:
        """Hash the fingerprint."""
        return hash(self.vocabulary.fingerprint)
