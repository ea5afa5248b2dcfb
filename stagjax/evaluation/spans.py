"""From texts to spans of ids: what is scored, after what, and what a model's length cuts off."""

import functools
from typing import NamedTuple

from stagjax.data.vocabulary import BOS, EOS, Vocabulary
from stagjax.errors import UserError
from stagjax.tasks.encoding import split_ids

# Rules for documents that are longer than the model (`document_spans`).
DISJOINT, OVERLAP = "disjoint", "overlap"


class Span(NamedTuple):
    """Ids whose probability is asked, after others.

    Attributes:
      context: at least one id.
      continuation: ids that are scored; with the context, all but the last are inputs of the model.
      num_truncated: ids of the context that were cut off at its left.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    num_truncated: int = 0


class SpanEncoder:
    """Encodes contexts with their continuations, and documents, for a model of `max_length` positions."""

    def __init__(self, vocabulary: Vocabulary, max_length: int):
        self._vocabulary, self._max_length = vocabulary, max_length
        # The continuations of a document follow each other.
        self._cached = functools.lru_cache(maxsize=64)(self._encode)

    def continuation(self, context: str, continuation: str) -> Span:
        """Return the span of a continuation after BOS and its context.

        They are encoded jointly (`split_ids`). Where the whole is longer than the model its last ids stay (BOS is the
        first to go).

        Raises:
          UserError: a continuation that is empty, or alone longer than the model; texts that are not Unicode.
        """
        if not continuation:
            raise UserError(f"the continuation after {_shown(context)} is empty; it has nothing to score")
        before, scored = split_ids(context, continuation, self._cached)
        if len(scored) > self._max_length:
            raise UserError(
                f"the continuation {_shown(continuation)} has {len(scored)} tokens, over "
                f"model.max_length={self._max_length}; shorten it, or score it as a document"
            )
        context_ids = (BOS, *before)
        kept = context_ids[-(self._max_length - len(scored) + 1) :]
        return Span(kept, scored, len(context_ids) - len(kept))

    def document(self, text: str, with_end: bool, rule: str) -> list[Span]:
        """Return the spans of a document, after BOS; in them every token is scored once."""
        ids = (*self._encode(text), EOS) if with_end else self._encode(text)
        return document_spans(ids, self._max_length, rule)

    def prompt(self, context: str, room: int) -> tuple[list[int], int]:
        """Return the ids of a prompt, BOS first, cut at the left to leave `room` positions; and how many were cut.

        Raises:
          UserError: nothing is left for the prompt.
        """
        most = self._max_length - room
        if most < 1:
            raise UserError(
                f"max_new_tokens={room} leaves nothing of model.max_length={self._max_length} for a prompt; leave the "
                "task out, or lengthen the model: stagjax checkpoint convert RUN "
                f"--config.model.max_length={2 * room} --output=DIR"
            )
        ids = [BOS, *self._encode(context)]
        return ids[-most:], max(0, len(ids) - most)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self._vocabulary.encode(text).tolist())
        except ValueError as error:
            raise UserError(f"{_shown(text)} is not Unicode text: {error}; give valid UTF-8") from error


def document_spans(ids: tuple[int, ...], max_length: int, rule: str) -> list[Span]:
    """Cut a document into spans of at most `max_length` inputs, in which each of its ids is scored once.

    Inputs are BOS and the ids but for the last. The first span is as long as the model; each further one scores the
    next `max_length` ids ("disjoint", the harness's rule) or half as many ("overlap"), after all inputs before them for
    which there is room. So a disjoint span that is full has one id of context, and the last one more.
    """
    stride = {DISJOINT: max_length, OVERLAP: max(1, max_length // 2)}[rule]
    inputs = (BOS, *ids)
    spans, begin = [], 0
    while begin < len(ids):
        end = min(begin + (stride if begin else max_length), len(ids))
        spans.append(Span(inputs[max(0, end - max_length) : begin + 1], ids[begin:end]))
        begin = end
    return spans


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
