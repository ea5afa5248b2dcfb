"""EleutherAI's lm-evaluation-harness on this project's scorer: its `LM`, answered by `stagjax.evaluation`."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from stagjax.evaluation.scoring import Scorer, Settings
from stagjax.library import LanguageModel
from stagjax.tasks.requests import GenerationRequest, LoglikelihoodRequest, RollingRequest

# What the harness generates where a task does not say.
MAX_NEW_TOKENS = 256


class StagjaxLM(LM):
    """A model of `stagjax.load` as the harness takes models: `lm_eval.simple_evaluate(StagjaxLM(lm), tasks=...)`.

    Args:
      lm: the model.
      settings: how it is decoded and scored.
    """

    def __init__(self, lm: LanguageModel, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        self.scorer = Scorer(lm, settings)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (logprob, is_greedy) of each continuation."""
        answers = self.scorer.answer([LoglikelihoodRequest(*request.args) for request in requests])
        return [(answer.logprob, answer.is_greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the logprob of each document, without its end, which the harness does not know; with a flag in 0.5."""
        answers = self.scorer.answer([RollingRequest(request.args[-1], with_end=False) for request in requests])
        return [(answer.logprob, False) if is_new() else answer.logprob for answer in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return one answer to each prompt, cut before its stop strings."""
        answers = self.scorer.answer([_generation(*request.args) for request in requests])
        return [answer.texts[0] for answer in answers]


def is_new() -> bool:
    """Return whether the harness is 0.5 (tried: its 0.5.0.dev1), which makes tasks, requests and metrics otherwise."""
    return hasattr(ConfigurableTask, "from_config")


def _generation(context: str, options: dict[str, Any]) -> GenerationRequest:
    until = options.get("until") or ()
    return GenerationRequest(
        context,
        stop=_texts(until),
        max_new_tokens=int(options.get("max_gen_toks", MAX_NEW_TOKENS)),
        temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
    )


def _texts(until: str | Sequence[str]) -> tuple[str, ...]:
    return (until,) if isinstance(until, str) else tuple(until)
