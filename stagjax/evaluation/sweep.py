"""Many tasks of many models: what is finished is read, what is not is made, and a failure stops nothing else."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from stagjax.errors import RunFailed, UserError
from stagjax.evaluation import lockstep
from stagjax.evaluation.cells import Cells, NotKept, cell_key
from stagjax.evaluation.questions import Questions, Task, prepare
from stagjax.evaluation.running import run_task, settings_of
from stagjax.evaluation.sandbox import Isolation, Limits
from stagjax.evaluation.scoring import Scorer, Settings
from stagjax.evaluation.subjects import Subject
from stagjax.library import LanguageModel
from stagjax.mesh import DecodeMesh
from stagjax.tasks.requests import GenerationRequest

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
NO_CODE = "programs of a model are executed with --allow-code-execution only"
WAIT = 1.0
"""Seconds between two looks at cells that other processes work on."""


class Work(NamedTuple):
    """One task of one model, decoded in one way."""

    subject: Subject
    task: Task
    settings: Settings


class Outcome(NamedTuple):
    """What became of a piece of work.

    Attributes:
      status: "done", "failed" or "skipped".
      key: of its cell, "" where it has none.
      result: of a cell that is done.
      reason: one line, of what is not done.
      by_input: whether it failed because of what the user gave.
    """

    status: str
    key: str = ""
    result: dict[str, Any] | None = None
    reason: str = ""
    by_input: bool = False


class Listener(NamedTuple):
    """Who is told how far a sweep is.

    Attributes:
      progress: called with (requests answered, all requests to answer, which cell).
      note: called with one line.
      between: called before every portion of a cell, by all processes; may raise.
      stop: called after every batch; may raise where there is one process only.
    """

    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    note: Callable[[str], None] = lambda text: None
    between: Callable[[], None] = lambda: None
    stop: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Means:
    """With what a sweep is made; results do not depend on it, beyond rounding.

    Attributes:
      data_dir: of the benchmarks' files.
      mesh: that models decode and score on.
      isolation: of programs; None executes none.
      machine: description, kept with every cell.
    """

    data_dir: str
    mesh: DecodeMesh
    isolation: Isolation | None
    machine: dict[str, Any]


def run_sweep(works: Sequence[Work], cells: Cells, means: Means, listener: Listener) -> list[Outcome]:
    """Return what became of each piece of work, in order; make those cells that are missing.

    Each checkpoint is loaded once, and only if something of it is missing. Other processes may run the same sweep:
    each takes what no other one works on. The processes of one JAX cluster work on every cell together.

    Raises:
      NotKept: results cannot be written.
    """
    questions, problems = _questions(works, means, listener)
    outcomes = [_without_work(work, questions, problems, means) for work in works]
    pairs = zip(works, outcomes, strict=True)
    keys = [_key(work, questions[work.task]) if outcome is None else "" for work, outcome in pairs]
    found: dict[str, Outcome] = {}
    missing: dict[str, Work] = {}
    for work, key in zip(works, keys, strict=True):
        if key and key not in found and key not in missing:
            result = lockstep.told_by_first(cells.read(key))
            if result:
                found[key] = Outcome(DONE, key, result)
            else:
                missing[key] = work
    if found:
        listener.note(f"{len(found)} of {len(found) + len(missing)} cells are there already")
    _Maker(cells, means, listener, questions, missing).make(found)
    return [
        outcome or _with_own_examples(found[key], questions[work.task])
        for work, key, outcome in zip(works, keys, outcomes, strict=True)
    ]


def _questions(
    works: Iterable[Work], means: Means, listener: Listener
) -> tuple[dict[Task, Questions], dict[Task, UserError]]:
    """Read all data once; what cannot be read is one error a task."""
    questions, problems = {}, {}
    for task in dict.fromkeys(work.task for work in works):
        error = None
        try:
            questions[task] = prepare(task, means.data_dir)
        except UserError as raised:
            error = raised
        if not lockstep.all_equal("" if error else questions[task].fingerprint):
            questions.pop(task, None)
            error = UserError(f"{task.benchmark}: the data in {means.data_dir} differ between the processes; copy them")
        if error:
            problems[task] = error
            listener.note(str(error))
    return questions, problems


def _without_work(work: Work, questions: dict, problems: dict, means: Means) -> Outcome | None:
    """Return the outcome of what cannot be made, None for all else."""
    if work.task in problems:
        return Outcome(FAILED, reason=str(problems[work.task]), by_input=True)
    if questions[work.task].benchmark.programs is not None and means.isolation is None:
        return Outcome(SKIPPED, reason=NO_CODE)
    return None


def _with_own_examples(outcome: Outcome, questions: Questions) -> Outcome:
    # Of the questions, not of the answers: so cells that were made before this was counted have it, too.
    if outcome.result is None:
        return outcome
    return outcome._replace(result=outcome.result | {"own_examples": questions.own_examples})


def _key(work: Work, questions: Questions) -> str:
    settings = settings_of(questions, work.settings, Limits())
    return cell_key(work.subject.content, work.subject.vocabulary, questions.fingerprint, settings)


class _Maker:
    """Makes missing cells, those of one checkpoint after the other."""

    def __init__(
        self,
        cells: Cells,
        means: Means,
        listener: Listener,
        questions: dict[Task, Questions],
        missing: dict[str, Work],
    ):
        self._cells, self._means, self._listener, self._questions = cells, means, listener, questions
        # Checkpoint by checkpoint, so that each is loaded once, and mode by mode, so that each is compiled once.
        order = {content: n for n, content in enumerate(dict.fromkeys(w.subject.content for w in missing.values()))}
        ordered = sorted(missing.items(), key=lambda item: (order[item[1].subject.content], item[1].settings.decoding))
        self._missing = dict(ordered)
        self._total = sum(questions[work.task].num_requests for work in missing.values())
        self._done = 0
        self._model: tuple[str, LanguageModel] | None = None
        self._scorer: tuple[tuple, Scorer] | None = None

    def make(self, found: dict[str, Outcome]) -> None:
        """Add the outcome of every missing cell; wait for those that other processes make."""
        while self._missing:
            busy = len(self._missing)
            for key, work in list(self._missing.items()):
                outcome = self._make(key, work)
                if outcome is not None:
                    found[key] = outcome
                    del self._missing[key]
            if self._missing and len(self._missing) == busy:
                self._listener.progress(self._done, self._total, f"waiting for {busy} cells of other processes")
                self._listener.between()
                time.sleep(WAIT)

    def _make(self, key: str, work: Work) -> Outcome | None:
        """Make a cell, or return None where another process is about it."""
        questions = self._questions[work.task]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._cells.claim(key)) if lockstep.is_first() else None
            result = self._cells.read(key) if lockstep.is_first() else None
            result, free = lockstep.told_by_first([result, log is not None])
            if result is None and not free:
                return None
            if result is None:
                try:
                    made = self._run(work, questions, log)
                except NotKept:
                    raise
                except (UserError, RunFailed, jax.errors.JaxRuntimeError) as error:
                    text = f"{describe(work)}: {str(error).splitlines()[0]}"
                    self._listener.note(text)
                    self._done += questions.num_requests
                    return Outcome(FAILED, key, reason=text, by_input=isinstance(error, UserError))
                if lockstep.is_first():
                    self._cells.finish(key, made)
                    result = self._cells.read(key)
                result = lockstep.told_by_first(result)
        self._done += questions.num_requests
        self._listener.progress(self._done, self._total, describe(work))
        return Outcome(DONE, key, result)

    def _run(self, work: Work, questions: Questions, log: Any) -> dict[str, Any]:
        def progress(done: int) -> None:
            self._listener.progress(self._done + done, self._total, describe(work))
            self._listener.stop()

        self._listener.between()
        result = run_task(
            questions, self._scorer_of(work), log, progress, self._listener.between, self._means.isolation, Limits()
        )
        facts = {
            "model": work.subject.content,
            "vocabulary": work.subject.vocabulary,
            "questions": questions.fingerprint,
            "settings": settings_of(questions, work.settings, Limits()),
            "scored_by": scored_by(questions, work.settings),
            "machine": self._means.machine,
        }
        return result | facts if result else {}

    def _scorer_of(self, work: Work) -> Scorer:
        content = work.subject.content
        if self._model is None or self._model[0] != content:
            self._model = self._scorer = None  # its memory, before the next one needs it
            self._model = content, work.subject.load(self._means.mesh)
        if self._scorer is None or self._scorer[0] != (content, work.settings):
            self._scorer = None
            self._scorer = (content, work.settings), Scorer(self._model[1], work.settings)
        return self._scorer[1]


def describe(work: Work) -> str:
    """Return what a piece of work is, in one line."""
    mode = "" if work.settings.decoding == "parallel" else f", {work.settings.decoding}"
    return f"{work.subject.name} step {work.subject.step}{mode}: {work.task.benchmark}, {work.task.shots} shots"


def scored_by(questions: Questions, settings: Settings) -> str:
    """Return how answers of a task came about, for reports."""
    generated = {isinstance(request, GenerationRequest) for item in questions.items for request in item.requests}
    parts = [f"text: {settings.decoding} decode loop"] if True in generated else []
    return "; ".join([settings.scored_by, *parts] if False in generated else parts)
