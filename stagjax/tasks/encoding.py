"""Requests as ids: what the model reads, and what is scored or expected after it."""

from stagjax.data.vocabulary import BOS, EOS, Vocabulary
from stagjax.tasks.requests import GenerationRequest, LoglikelihoodRequest, Request


def request_ids(request: Request, vocabulary: Vocabulary, target: str = "") -> tuple[list[int], list[int]]:
    """Return the ids before and after the border, whole: nothing is cut to a model's length.

    A continuation is encoded jointly with its context and then split, after white space at the context's end has moved
    to it, as the field's harness does.

    Args:
      request: what is asked.
      vocabulary: of the model.
      target: text expected of a generation.
    """
    if isinstance(request, GenerationRequest):
        return [BOS, *vocabulary.encode(request.context).tolist()], vocabulary.encode(target).tolist()
    if not isinstance(request, LoglikelihoodRequest):
        return [BOS], [*vocabulary.encode(request.text).tolist(), EOS]
    context = request.context.rstrip()
    before = vocabulary.encode(context).tolist()
    whole = vocabulary.encode(request.context + request.continuation).tolist()
    # Joined at the border, the whole may have no more pieces than the context: then its last one is scored.
    scored = whole[len(before) :] or whole[-1:]
    return [BOS, *before], scored
