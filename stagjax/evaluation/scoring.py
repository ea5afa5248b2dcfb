"""The scorer: requests of benchmarks in, answers in the same order out, on one device or on the mesh of a model."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stagjax import memory
from stagjax.decoding.placement import PARALLEL, RECURRENT, check_mode
from stagjax.errors import unknown
from stagjax.evaluation.answering import Answering
from stagjax.evaluation.forward import TeacherForced
from stagjax.evaluation.spans import DISJOINT, OVERLAP, Span, SpanEncoder
from stagjax.evaluation.stepping import Stepped
from stagjax.evaluation.trees import Tree, batches, grow, to_rows
from stagjax.library import LanguageModel
from stagjax.mesh import scoring_mesh
from stagjax.rules import SEED
from stagjax.tasks.requests import Answers, GenerationRequest, Loglikelihood, LoglikelihoodRequest, Request

# Slots of a batch on each device: where the caches of a CPU's cores still hold much of what is computed, and where an
# accelerator has enough to do.
CPU_SLOTS, SLOTS = 2048, 16384

ANYWHERE, AFTER_TEXT = "anywhere", "after_text"


class Settings(NamedTuple):
    """What decides answers besides the model and the requests; results state it.

    Attributes:
      decoding: "parallel" or "recurrent".
      documents: how those longer than the model are cut: "disjoint" as the harness does, parts of the model's length
        after one token of context (the last one after as many as fit), or "overlap", parts of half of that after the
        other half.
      stop: where stop strings count: "anywhere" as in the harness, or "after_text", from the first character of an
        answer on that is no white space.
      seed: of sampled answers.
    """

    decoding: str = PARALLEL
    documents: str = DISJOINT
    stop: str = ANYWHERE
    seed: int = 0

    def check(self) -> None:
        """Raise `UserError` for an unknown rule or mode, or a seed out of range."""
        SEED.check("seed", self.seed)
        for field, known in (
            ("decoding", (PARALLEL, RECURRENT)),
            ("documents", (DISJOINT, OVERLAP)),
            ("stop", (ANYWHERE, AFTER_TEXT)),
        ):
            if getattr(self, field) not in known:
                raise unknown(field, getattr(self, field), known)

    @property
    def scored_by(self) -> str:
        """How log-likelihoods are computed, for reports."""
        if self.decoding == RECURRENT:
            return "decode path, token by token: prefill of the context, then one pass a token"
        return "teacher forcing, which equals parallel decoding"


@dataclasses.dataclass
class Statistics:
    """What answering took so far.

    Attributes:
      requests: answered.
      truncated: of them, those whose context was cut off at the left.
      tokens: that were scored.
      slots: of the model's inputs that were computed, padding included; of teacher forcing.
      padding: of them, padding.
    """

    requests: int = 0
    truncated: int = 0
    tokens: int = 0
    slots: int = 0
    padding: int = 0


class Scorer:
    """Answers requests with one model.

    Rows are divided over all devices of the model's mesh. With several processes all of them call it with the same
    requests and get the same answers.

    Args:
      lm: the model.
      settings: what decides answers.
      slots: of a batch on each device; None for what the platform wants. Answers do not depend on it, beyond rounding.

    Raises:
      UserError: unknown settings, or a mode that the model cannot be decoded in.
    """

    def __init__(self, lm: LanguageModel, settings: Settings = Settings(), *, slots: int | None = None):  # noqa: B008
        settings.check()
        check_mode(lm.config.model, settings.decoding)
        self.settings, self.statistics = settings, Statistics()
        self._lm, self._model = lm, lm.config.model
        self._encoder = SpanEncoder(lm.vocabulary, self._model.max_length)
        self._mesh = scoring_mesh(lm.mesh, self._model.model_dim)
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        self._slots = slots or (CPU_SLOTS if on_cpu else SLOTS)

    def answer(
        self, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Loglikelihood | Answers]:
        """Return the answer to each request, in order.

        Args:
          requests: of any kinds, mixed.
          on_progress: called with (requests answered, all of them) after every batch.

        Raises:
          UserError: a request that cannot be answered: an empty continuation, one that is longer than the model, no
            room for a prompt, text that is not Unicode.
          RunFailed: too little memory.
        """
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            if on_progress and count:
                on_progress(done, len(requests))

        generated = [n for n, request in enumerate(requests) if isinstance(request, GenerationRequest)]
        scored = [n for n, request in enumerate(requests) if not isinstance(request, GenerationRequest)]
        answers: list[Any] = [None] * len(requests)
        if scored:
            with memory.told(
                f"scoring {self._slots} tokens at once on each device does not fit; divide the model over more devices "
                "(--mesh=tensor=N)"
            ):
                found = self._loglikelihoods([self._spans(requests[n]) for n in scored], more)
            for n, answer in zip(scored, found, strict=True):
                answers[n] = answer
        if generated:
            for n, answer in zip(generated, self._answering([requests[n] for n in generated], more), strict=True):
                answers[n] = answer
        self.statistics.requests += len(answers)
        self.statistics.truncated += sum(answer.num_truncated > 0 for answer in answers)
        return answers

    def _spans(self, request: Request) -> list[Span]:
        if isinstance(request, LoglikelihoodRequest):
            return [self._encoder.continuation(request.context, request.continuation)]
        return self._encoder.document(request.text, request.with_end, self.settings.documents)

    def _loglikelihoods(self, of_requests: list[list[Span]], more: Callable[[int], None]) -> list[Loglikelihood]:
        """Return the log-likelihood of each request: the sum over its spans."""
        owners = [number for number, spans in enumerate(of_requests) for _ in spans]
        missing = [len(spans) for spans in of_requests]
        logprobs, greedy = np.zeros(len(of_requests)), np.ones(len(of_requests), bool)
        more(missing.count(0))
        trees = grow([span for spans in of_requests for span in spans])
        run = self._stepped if self.settings.decoding == RECURRENT else self._teacher_forced
        for trees_of_batch in _one_ahead(run(trees)):
            answered = 0
            for number, span_logprobs, span_greedy in trees_of_batch():
                owner = owners[number]
                logprobs[owner] += span_logprobs.sum(dtype=np.float64)
                greedy[owner] &= span_greedy.all()
                missing[owner] -= 1
                answered += missing[owner] == 0
                self.statistics.tokens += len(span_logprobs)
            more(answered)
        return [
            Loglikelihood(
                float(logprobs[number]),
                bool(greedy[number]),
                sum(len(span.continuation) for span in spans),
                sum(span.num_truncated for span in spans),
            )
            for number, spans in enumerate(of_requests)
        ]

    def _teacher_forced(self, trees: list[Tree]) -> Iterator[Callable[[], Iterator]]:
        """Start one batch after the other; what is yielded waits for its results: (span, logprobs, greedy)."""
        for batch in batches(trees, self._slots, self._mesh.size):
            found = self._pass(to_rows(batch, self._model.lag))
            self.statistics.slots += batch.num_rows * batch.length
            self.statistics.padding += batch.num_rows * batch.length - sum(tree.num_slots for tree in batch.trees)
            yield functools.partial(_read, batch.trees, *found)

    def _stepped(self, trees: list[Tree]) -> Iterator[Callable[[], Iterator]]:
        """Do the same through the decode path."""
        stepped = Stepped(self._lm.decoder(self.settings.decoding), self._model.max_length)
        for members in stepped.batches(trees):
            yield functools.partial(_read_steps, members, *stepped(members))

    @functools.cached_property
    def _pass(self) -> TeacherForced:
        return TeacherForced(self._model, self._lm.params, self._lm.vocabulary.size, self._mesh)

    @functools.cached_property
    def _answering(self) -> Answering:
        return Answering(
            self._lm.decoder(self.settings.decoding),
            self._lm.vocabulary,
            self._encoder,
            self._model.max_length,
            stop_after_text=self.settings.stop == AFTER_TEXT,
            seed=self.settings.seed,
        )


def _one_ahead(started: Iterator) -> Iterator:
    """Yield what an iterator yields, one later: while a batch is read the next one is under way."""
    waiting: collections.deque = collections.deque()
    for item in started:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _read(trees: Sequence[Tree], logprobs_BJ: jax.Array, greedy_BJ: jax.Array) -> Iterator[tuple]:
    """Yield (span, its tokens' logprobs, whether each is greedy) of trees in rows."""
    logprobs_BJ, greedy_BJ = np.asarray(logprobs_BJ), np.asarray(greedy_BJ)
    for tree, logprobs_J, greedy_J in zip(trees, logprobs_BJ, greedy_BJ, strict=False):  # padded with rows
        first = 0
        for number, ids in tree.spans:
            taken = slice(first, first + len(ids))
            yield number, logprobs_J[taken], greedy_J[taken]
            first += len(ids)


def _read_steps(trees: Sequence[Tree], logprobs_nR: jax.Array, greedy_nR: jax.Array) -> Iterator[tuple]:
    """Yield the same of trees that were stepped through."""
    logprobs_nR, greedy_nR = np.asarray(logprobs_nR), np.asarray(greedy_nR)
    spans = [span for tree in trees for span in tree.spans]
    for row, (number, ids) in enumerate(spans):
        yield number, logprobs_nR[: len(ids), row], greedy_nR[: len(ids), row]
