"""The validation loss of models outside of a run, on the corpus that they were trained on."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stagjax.config import Config
from stagjax.data.corpus import load_corpus
from stagjax.data.loader import validation_batches
from stagjax.data.manifest import Manifest, differences
from stagjax.errors import UserError
from stagjax.training.step import make_validation_step
from stagjax.training.validation import SubsetSums


def validate(models: Sequence[tuple[Config, Any]], manifest: Manifest) -> list[dict[str, float]]:
    """Return "loss" and "bits_per_byte" of each (config, params) on the corpus of the first, on one device.

    The rows are those that `training.validation_rows` names, as in a run.

    Args:
      models: whose data sections are alike.
      manifest: of the corpus that is meant.

    Raises:
      UserError: the corpus cannot be loaded, or is another one.
    """
    first = models[0][0]
    corpus = load_corpus(first.data, first.model.vocab_size)
    if lines := differences(manifest, corpus.manifest):
        raise UserError(f"data.source={first.data.source!r} is not what the model was trained on: {'; '.join(lines)}")
    rows = first.training.global_batch // first.training.accumulation
    results = []
    for config, params in models:
        byte_lengths_V = np.zeros(config.model.vocab_size, np.float32)
        byte_lengths_V[: corpus.vocabulary.size] = corpus.vocabulary.byte_lengths
        step = jax.jit(make_validation_step(config))
        sums = SubsetSums(corpus.subsets)
        for batch in validation_batches(corpus.validation, rows, first.training.validation_rows):
            subsets_B = batch.pop("subsets")
            sums.add(step(params, batch, byte_lengths_V), subsets_B)
        results.append(sums.total())
    return results
