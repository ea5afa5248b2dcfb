"""Requests as ids: what the model reads, and what is scored or expected after it."""

from collections.abc import Callable, Sequence

from stagjax.data.vocabulary import BOS, EOS, Vocabulary
from stagjax.tasks.requests import GenerationRequest, LoglikelihoodRequest, Request


def request_ids(request: Request, vocabulary: Vocabulary, target: str = "") -> tuple[list[int], list[int]]:
    """Return the ids before and after the border, whole: nothing is cut to a model's length.

    Args:
      request: what is asked.
      vocabulary: of the model.
      target: text expected of a generation.
    """
    if isinstance(request, GenerationRequest):
        return [BOS, *vocabulary.encode(request.context).tolist()], vocabulary.encode(target).tolist()
    if not isinstance(request, LoglikelihoodRequest):
        return [BOS], [*vocabulary.encode(request.text).tolist(), EOS]
    before, scored = split_ids(request.context, request.continuation, lambda text: vocabulary.encode(text).tolist())
    return [BOS, *before], scored


def split_ids(
    context: str, continuation: str, encode: Callable[[str], Sequence[int]]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids of a context and of what comes after it, encoded jointly and then split.

    As the field's harness does: white space at the context's end goes to the continuation, both are encoded as one
    text, and the continuation is what comes after as many ids as the context alone has.

    Args:
      context: may be empty.
      continuation: not empty.
      encode: from a text to its ids.
    """
    before, whole = encode(context.rstrip()), encode(context + continuation)
    # Joined at the border, the whole may have no more pieces than the context: then its last one is scored.
    return before, whole[len(before) :] or whole[-1:]
