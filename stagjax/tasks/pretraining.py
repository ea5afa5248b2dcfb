"""Pretraining corpora as seqio tasks: the very documents and ids that training packs."""

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from stagjax.config import DataConfig
from stagjax.data.corpus import documents
from stagjax.data.prepared import open_vocabulary
from stagjax.data.sources import SPLITS
from stagjax.errors import unknown
from stagjax.tasks.seqio_vocabulary import SeqioVocabulary


def register(name: str, config: DataConfig) -> seqio.Task:
    """Register a task over the splits of `config`, whose examples are {"targets": int32 ids of a document with EOS}.

    Ids come from the iterator that training packs, or from the rows that were packed before, so they are those of
    training by construction.

    Raises:
      UserError: the vocabulary cannot be read.
      ValueError: the name is taken.
    """

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # Documents are read in one order; seqio shuffles what comes out.
        check_split(name, split, SPLITS)
        return tf.data.Dataset.from_generator(
            lambda: ({"targets": document.ids} for document in documents(config, split)),
            output_signature={"targets": tf.TensorSpec([None], tf.int32)},
        )

    vocabulary = SeqioVocabulary(open_vocabulary(config))
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=SPLITS, caching_permitted=False),
        preprocessors=[refuse_trimming],
        # EOS is among the ids already; with add_eos seqio would put it on trimmed documents too.
        output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
        metric_fns=[],
    )


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raise `UserError` if a task has no such split: seqio's source hands on whatever it is asked for."""
    if split not in splits:
        raise unknown(f"split of {name}", str(split), splits)


def refuse_trimming(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None) -> tf.data.Dataset:
    """Return `dataset` as it is.

    Raises:
      ValueError: a `sequence_length` was asked for. seqio would cut documents to it and drop the rest of each, 82% of a
        corpus of long ones.
    """
    if sequence_length is not None:
        raise ValueError(
            f"sequence_length={dict(sequence_length)} would drop the ends of documents; use sequence_length=None and "
            "stagjax.data.packing.pack"
        )
    return dataset


register("stagjax_stdlib", DataConfig())
