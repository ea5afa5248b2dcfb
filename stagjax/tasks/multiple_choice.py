"""Questions with given choices: the most probable continuation wins."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from stagjax.tasks import prompts
from stagjax.tasks.records import Document
from stagjax.tasks.requests import Loglikelihood, LoglikelihoodRequest
from stagjax.tasks.statistics import mean_metric

ACC = mean_metric("acc")
ACC_NORM = mean_metric("acc_norm")


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """Each choice is a continuation of the question, after a space.

    Attributes:
      question: document -> the text that all choices continue.
      choices: document -> the choices; or the choices themselves, where all documents have the same.
      target: document -> the right choice's index, or its text (then the first choice of that text is right).
    """

    scored: ClassVar[bool] = True

    question: Callable[[Document], str]
    choices: Callable[[Document], Sequence[str]] | Sequence[str]
    target: Callable[[Document], int | str]

    def example(self, document: Document) -> str:
        """Return the question with the right choice."""
        target = self.target(document)
        answer = self.choices_of(document)[target] if isinstance(target, int) else target
        # Written out rather than `prompts.example`: an empty choice is still an answer.
        return f"{self.question(document)}{prompts.ANSWER}{answer}{prompts.EXAMPLE}"

    def requests(self, document: Document, examples: str) -> tuple[LoglikelihoodRequest, ...]:
        """Return a request for each choice, all with one context."""
        context = examples + self.question(document)
        return tuple(LoglikelihoodRequest(context, prompts.ANSWER + choice) for choice in self.choices_of(document))

    def choices_of(self, document: Document) -> Sequence[str]:
        """Return the choices of a document."""
        return self.choices(document) if callable(self.choices) else self.choices

    def score(self, document: Document, answers: Sequence[Loglikelihood]) -> dict[str, Any]:
        """Return accuracy, plain and with log-probabilities divided by the choices' characters ("acc_norm")."""
        choices, target = self.choices_of(document), self.target(document)
        if isinstance(target, str):
            target = choices.index(target)
        return score_choices([answer.logprob for answer in answers], [len(choice) for choice in choices], target)


def score_choices(logprobs: Sequence[float], lengths: Sequence[int], gold: int) -> dict[str, Any]:
    """Return the scores of a choice; ties go to the first, and an undefined quotient (0 / 0) wins.

    Args:
      logprobs: of the choices' continuations.
      lengths: characters of the choices, without the space before them.
      gold: index of the right one.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = np.asarray(logprobs, float) / np.asarray(lengths, float)
    predicted = int(np.argmax(logprobs))
    return {
        "acc": float(predicted == gold),
        "acc_norm": float(int(np.argmax(normalised)) == gold),
        "gold": gold,
        "predicted": predicted,
    }
