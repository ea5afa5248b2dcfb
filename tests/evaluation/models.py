"""Tiny language models to score with, and what their answers must be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from stagjax.config import Config, DataConfig, ModelConfig, TrainingConfig
from stagjax.data.vocabulary import BOS, ByteVocabulary
from stagjax.decoding.reference import sequential_logits, sequential_recurrent_logits
from stagjax.library import LanguageModel
from stagjax.mesh import DecodeMesh
from tests.variants import params_of

# Embeddings that no id of the byte vocabulary reads: they must not take a share of the probability.
SPARE_IDS = 5
VOCAB = ByteVocabulary().size

_logits = jax.jit(sequential_logits, static_argnums=0)
_recurrent_logits = jax.jit(sequential_recurrent_logits, static_argnums=0)


def with_bytes(config: ModelConfig, **changes) -> ModelConfig:
    """Return the shape with a vocabulary of bytes."""
    return dataclasses.replace(config, vocab_size=VOCAB + SPARE_IDS, **changes)


def language_model(config: ModelConfig, mesh: DecodeMesh = DecodeMesh()) -> LanguageModel:  # noqa: B008
    """Return a model of bytes with random parameters; its outputs are large, so that its predictions are far apart."""
    config = with_bytes(config)
    whole = Config(config, DataConfig(row_length=config.max_length), TrainingConfig())
    params = params_of(config)
    params["out_norm"]["scale"] *= 6
    return LanguageModel(whole, params, ByteVocabulary(), 0, mesh)


def ids_of(text: str) -> list[int]:
    """Return BOS and bytes."""
    return [BOS, *ByteVocabulary().encode(text).tolist()]


def logits_of(lm: LanguageModel, ids: list[int], recurrent_from: int | None = None) -> np.ndarray:
    """Return the logits [T,V] after each of some ids, by whole rows; recurrent from some index on."""
    # One length for all: what comes behind changes nothing.
    args = lm.config.model, lm.params, jnp.pad(jnp.array([ids]), ((0, 0), (0, lm.config.model.max_length - len(ids))))
    logits_BTV = _logits(*args) if recurrent_from is None else _recurrent_logits(*args, recurrent_from)
    return np.asarray(logits_BTV[0, : len(ids), :VOCAB], np.float64)


def reference(lm: LanguageModel, ids: list[int], scored: int, recurrent: bool = False) -> tuple[float, bool]:
    """Return (logprob, is_greedy) of the last `scored` ids, by whole-row logits of the slow references.

    Recurrent: all ids before them are the prompt.
    """
    logits_TV = logits_of(lm, ids[:-1], len(ids) - scored if recurrent else None)[len(ids) - scored - 1 :]
    logprobs_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True)
    targets = ids[len(ids) - scored :]
    picked = logprobs_TV[np.arange(scored), targets]
    return float(picked.sum()), bool((logits_TV.argmax(axis=-1) == targets).all())


close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
