"""What a benchmark asks of a model, and what the model answers: plain data between prompts, scoring and metrics."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class LoglikelihoodRequest:
    """How probable is `continuation` after `context`? The two are encoded jointly, then split.

    Attributes:
      context: text before it; BOS stands before that.
      continuation: text whose tokens are scored.
    """

    context: str
    continuation: str


@dataclasses.dataclass(frozen=True)
class RollingRequest:
    """How probable is a whole document? Every token is scored once.

    Attributes:
      text: of the document.
      with_end: whether its end (EOS) is one of them; the harness's rolling likelihood knows none.
    """

    text: str
    with_end: bool = True


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """How does the model go on?

    Attributes:
      context: the prompt; BOS stands before it.
      stop: the answer ends before the first of these strings.
      max_new_tokens: or after so many tokens.
      temperature: 0 is greedy.
      samples: answers wanted, drawn independently.
    """

    context: str
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1


Request = LoglikelihoodRequest | RollingRequest | GenerationRequest


class Loglikelihood(NamedTuple):
    """The answer to a `LoglikelihoodRequest` or a `RollingRequest`.

    Attributes:
      logprob: natural logarithm of the probability of all scored tokens.
      is_greedy: whether each of them is the most probable one at its place; None where that was not looked at.
      num_tokens: scored.
      num_truncated: tokens of the context that were cut off at the left, because the whole is longer than the model.
    """

    logprob: float
    is_greedy: bool | None
    num_tokens: int
    num_truncated: int = 0


class Answers(NamedTuple):
    """The answer to a `GenerationRequest`.

    Attributes:
      texts: one for each sample, each cut before its stop string.
      num_truncated: tokens of the context that were cut off at the left.
    """

    texts: tuple[str, ...]
    num_truncated: int = 0


class Outcomes(NamedTuple):
    """What became of programs made of the answers to a `GenerationRequest`: the metrics' input besides the answers.

    Attributes:
      passed: for each sample, whether its program ran to its end without an exception.
    """

    passed: tuple[bool, ...]


Answer = Loglikelihood | Answers | Outcomes
