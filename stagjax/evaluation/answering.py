"""Generation for benchmarks: requests of one kind in batches of few lengths, through the decode loop."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stagjax.data.vocabulary import Vocabulary
from stagjax.decoding.generation import continue_ids, row_keys
from stagjax.decoding.loop import Decoder
from stagjax.decoding.sampling import Sampling
from stagjax.errors import UserError
from stagjax.evaluation.spans import SpanEncoder
from stagjax.rules import COUNT
from stagjax.tasks.requests import Answers, GenerationRequest

# Rows that decode together in each group of devices that holds a copy of the parameters: few enough for the caches of
# the longest prompts, and for rows that end early not to wait long for the others.
ROWS_AT_ONCE = 16


class _Sample(NamedTuple):
    """One row: of which request, its prompt, and what decides its noise."""

    request: int
    prompt_ids: list[int]
    row: int


class Answering:
    """Answers generation requests with a decoder.

    Args:
      decoder: of a mode; its mesh divides rows over `data`.
      vocabulary: between text and ids.
      encoder: of prompts.
      max_length: of the model.
      stop_after_text: stop strings only count from the first character of an answer on that is no white space.
      seed: of the sampling noise.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        encoder: SpanEncoder,
        max_length: int,
        *,
        stop_after_text: bool,
        seed: int,
    ):
        self._decoder, self._vocabulary, self._encoder, self._max_length = decoder, vocabulary, encoder, max_length
        self._stop_after_text, self._seed = stop_after_text, seed

    def __call__(self, requests: Sequence[GenerationRequest], on_done: Callable[[int], None]) -> list[Answers]:
        """Answer requests, in order; `on_done` is called with how many more were answered.

        The noise of a sample depends on the seed, its prompt, and how many equal prompts stand before it.

        Raises:
          UserError: values out of range, or a request that leaves no room for its prompt.
        """
        for request in requests:
            check(request, self._vocabulary.size)
        prompts = [self._encoder.prompt(request.context, request.max_new_tokens) for request in requests]
        numbers = [number for number, request in enumerate(requests) for _ in range(request.samples)]
        keys = row_keys([prompts[number][0] for number in numbers], self._seed) if numbers else None
        samples = [_Sample(number, prompts[number][0], row) for row, number in enumerate(numbers)]
        kind = lambda sample: _kind(requests[sample.request])
        samples.sort(key=lambda sample: (kind(sample), len(sample.prompt_ids)), reverse=True)
        texts: list[list[str]] = [[] for _ in requests]
        most = ROWS_AT_ONCE * self._decoder.placement.mesh.shape["data"]
        for _, group in itertools.groupby(samples, key=kind):
            members = list(group)
            for first in range(0, len(members), most):
                batch = sorted(members[first : first + most], key=lambda sample: sample.row)
                for sample, text in zip(batch, self._answer(requests, batch, keys), strict=True):
                    texts[sample.request].append((sample.row, text))
                    if len(texts[sample.request]) == requests[sample.request].samples:
                        on_done(1)
        return [
            Answers(tuple(text for _, text in sorted(of_request)), num_truncated)
            for of_request, (_, num_truncated) in zip(texts, prompts, strict=True)
        ]

    def _answer(self, requests: Sequence[GenerationRequest], batch: list[_Sample], keys) -> list[str]:
        """Return the texts of a batch of one kind; it is filled up to a power of two of rows that the mesh divides."""
        groups = self._decoder.placement.mesh.shape["data"]
        count = groups * (1 << max(0, -(-len(batch) // groups) - 1).bit_length())
        filled = batch + [batch[-1]] * (count - len(batch))
        first = requests[batch[0].request]
        found = continue_ids(
            self._decoder,
            self._vocabulary,
            [requests[sample.request].context for sample in filled],
            [sample.prompt_ids for sample in filled],
            keys[np.array([sample.row for sample in filled])],
            max_length=self._max_length,
            max_new_tokens=first.max_new_tokens,
            sampling=Sampling(first.temperature),
            stop=first.stop,
            stop_after_text=self._stop_after_text,
        )
        return [generation.text for generation in found[: len(batch)]]


def check(request: GenerationRequest, vocab_size: int) -> None:
    """Raise `UserError` for values out of range."""
    Sampling(request.temperature).check(vocab_size)
    COUNT.check("max_new_tokens", request.max_new_tokens)
    COUNT.check("samples", request.samples)
    if not all(request.stop):
        raise UserError("a stop string is empty; it would end every answer at once")


def _kind(request: GenerationRequest) -> tuple:
    """Return what all rows of a batch have in common."""
    return request.max_new_tokens, request.stop, request.temperature
