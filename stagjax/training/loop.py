"""The training loop: one run from its first or last saved step to its end, in a directory of its own."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich.console
from jax.sharding import Mesh

from stagjax import distributed, memory
from stagjax import workdir as workdirs
from stagjax.checkpoints.saving import Checkpoints
from stagjax.config import Config
from stagjax.config_rules import COSINE_FROM_ZERO
from stagjax.data.corpus import Corpus, load_corpus
from stagjax.data.loader import RowLoader
from stagjax.errors import RunFailed
from stagjax.files import check_place
from stagjax.hardware import chip_of
from stagjax.mesh import training_mesh
from stagjax.model.accounting import training_flops
from stagjax.model.pipelining import pipeline_report
from stagjax.reporting.metrics import FILE as METRICS
from stagjax.reporting.metrics import MetricWriter, NoMetrics
from stagjax.reporting.progress import Progress
from stagjax.sharding import check_training
from stagjax.training import goodput as accounts
from stagjax.training import versions
from stagjax.training.goodput import Goodput
from stagjax.training.initial import find_origin
from stagjax.training.interrupts import Interrupts
from stagjax.training.placing import own_rows, placed
from stagjax.training.prefetch import Prefetcher
from stagjax.training.profiling import Profiler, Window
from stagjax.training.recovery import BadStep, Judge, SkippedBatches
from stagjax.training.state import TrainState, abstract_state, create_state
from stagjax.training.step import check_memory, step_memory, training_program
from stagjax.training.validation import Validator, placed_byte_lengths
from stagjax.training.watching import Watch

_LISTEN_SECONDS = 0.2
"""Between two looks at the interrupts while no batch is ready: a reader that hangs must not keep a run from saving."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
      step: the last step, saved.
      validation: "loss" (nats per token) and "bits_per_byte" at that step; empty if the run had ended before.
    """

    step: int
    validation: dict[str, float]


def train(
    config: Config, workdir: pathlib.Path, init_from: str | None = None, profile: Window | None = None
) -> Summary:
    """Train `config` in `workdir` on all devices, going on from the newest checkpoint that is whole.

    Args:
      config: the experiment.
      workdir: the run's own directory.
      init_from: where a new run takes its parameters from (see `stagjax.training.initial`); None draws them.
      profile: steps whose trace is written to `workdir/profile`.

    Raises:
      UserError: a mesh, data, vocabulary, workdir or `init_from` that cannot be used.
      RunFailed: a bad step that the policies stop at, a full disk, too little memory, rows that cannot be read; the
        last good checkpoint is named.
      Preempted: SIGTERM; the state is saved.
      KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    check_place(workdir, "--workdir")
    mesh = training_mesh(config.mesh)
    rows = config.training.global_batch // config.training.accumulation
    check_training(config.model, mesh, rows, config.training.microbatches)
    check_memory(config, mesh)
    if profile:
        profile.check(config.training.steps)
    with workdirs.owned(workdir) as directory, Interrupts() as interrupts:
        goodput = _account(directory.path)
        with goodput.phase("start"):
            config = workdirs.resumed(directory.path, config)
            origin = find_origin(workdir, config.model, init_from, directory.path)
            corpus = load_corpus(config.data, config.model.vocab_size)
            if origin:
                origin.check_vocabulary(corpus.manifest)
            workdirs.claim(directory.path, config, corpus.manifest)
            if origin:
                origin.record(directory.path)
        checkpoints = Checkpoints(workdir, config.training.keep_last, keep_every=config.training.keep_every)
        try:
            with goodput.phase("restore"):
                restored = checkpoints.restore(abstract_state(config, mesh))
                first = origin.state(config, mesh) if origin and restored is None else None
            start = restored[1]["step"] if restored else 0
            versions_note = versions.record(directory.path, start) if jax.process_index() == 0 else None
            goodput.undo(start)
            with (
                _metric_writer(directory.path, start) as writer,
                Progress(config.training.steps, start, unit="tokens", console=_console()) as progress,
            ):
                for line in corpus.report():
                    progress.note(line)
                if mesh.size > 1:
                    sizes = " x ".join(f"mesh.{axis}={size}" for axis, size in mesh.shape.items())
                    progress.note(f"training on {mesh.size} devices: {sizes}")
                if mesh.shape["stack"] > 1:
                    progress.note(pipeline_report(config, mesh))
                if start:
                    progress.note(f"going on from step {start}")
                if versions_note:
                    progress.note(versions_note)
                if config.training.schedule == COSINE_FROM_ZERO:
                    progress.note(f"learning rates are those of earlier builds: training.schedule={COSINE_FROM_ZERO}")
                if start >= config.training.steps:
                    progress.note(f"step {config.training.steps} is the last one: there is nothing left to train")
                    return Summary(start, {})
                watch = Watch(writer, progress, goodput, _flops_share(config, mesh), checkpoints.last_good)
                profiler = Profiler(profile, directory.path / "profile", start, progress.note)
                run = _Run(config, mesh, corpus, checkpoints, watch, goodput, profiler, interrupts, directory.sync)
                with contextlib.closing(run), memory.told(step_memory(config), lambda: f"; {checkpoints.last_good()}"):
                    return run.go(restored, first)
        finally:
            checkpoints.close()


class _Run:
    """What the parts of the loop share; `go` is the way of a batch.

    The loop reads the metrics of a step once the next one is queued, so it never stalls the devices. What it decides,
    it decides by these metrics, which all hosts have alike.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        corpus: Corpus,
        checkpoints: Checkpoints,
        watch: Watch,
        goodput: Goodput,
        profiler: Profiler,
        interrupts: Interrupts,
        sync: Callable[[], None],
    ):
        self.config, self.mesh, self.corpus, self.checkpoints = config, mesh, corpus, checkpoints
        self.watch, self.goodput, self.profiler, self.interrupts = watch, goodput, profiler, interrupts
        self.progress, self.sync = watch.progress, sync
        self.judge = Judge(config.training)
        self.step, self.skipped = 0, SkippedBatches()
        self.prefetcher: Prefetcher | None = None
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.rollbacks_in_a_row = 0
        self.validation: dict[str, float] = {}

    def go(self, restored: tuple[TrainState, dict[str, Any]] | None, first: TrainState | None = None) -> Summary:
        """Run to the last step from a checkpoint's state and metadata, or from the beginning.

        `first` is the state to begin with where parameters come from elsewhere.
        """
        steps = self.config.training.steps
        with self.goodput.phase("compile"):
            self._compile(restored, first)
        if first is not None:
            # Saved at once: from here on the run does not need the place where its parameters came from.
            try:
                self._validate_and_save()
            except BadStep as bad:
                raise RunFailed(f"{bad.reason}: the parameters are bad; give another --init-from") from bad
        self.watch.begin()
        self.goodput.enter("step")
        while True:
            try:
                while self.step < steps and not self.interrupts.stop():
                    self._advance()
                self._settle()
                break
            except BadStep as bad:
                with self.goodput.phase("restore"):
                    self._recover(bad)
        if self.step < steps:
            with self.goodput.phase("checkpoint"):
                self._save(None)
                self.checkpoints.wait()
            distributed.part()
            raise self.interrupts.error(self.step)
        self.progress.phase("saving")
        with self.goodput.phase("checkpoint"):
            self.checkpoints.wait()
        self.watch.goodput(self.step)
        return Summary(self.step, self.validation)

    def close(self) -> None:
        """End what runs beside the loop, and show how the time was spent."""
        self.goodput.enter("other")
        if self.prefetcher:
            self.prefetcher.close()
        self.profiler.close()
        self.watch.end()

    def _compile(self, restored: tuple[TrainState, dict[str, Any]] | None, first: TrainState | None) -> None:
        self.progress.phase("compiling")
        begun = time.perf_counter()
        step, arguments = training_program(self.config, self.mesh)
        _, self.batch, lengths = arguments
        own, training = own_rows(self.batch["inputs"]), self.config.training
        self.loader = RowLoader(self.corpus.train, training.global_batch, training.seed, own)
        # First, so that the first batches are read meanwhile.
        self._go_on_from(restored, first=first)
        self.train_step = step.lower(*arguments).compile()
        check_memory(self.config, self.mesh, self.train_step)
        self.byte_lengths_V = placed_byte_lengths(self.corpus.vocabulary, lengths)
        self.validator = Validator(self.config, self.mesh, self.corpus)
        seconds = time.perf_counter() - begun
        self.watch.write(self.step, {"compile/seconds": seconds})
        self.progress.note(f"compiled in {seconds:.1f} s")
        self.progress.phase("training")

    def _go_on_from(
        self,
        restored: tuple[TrainState, Mapping[str, Any]] | None,
        skipped: SkippedBatches | None = None,
        first: TrainState | None = None,
    ) -> None:
        """Take up a checkpoint, or the beginning; `skipped` batches are the checkpoint's if they are not given."""
        if restored:
            self.state, self.step = restored[0], restored[1]["step"]
            self.skipped = skipped or SkippedBatches.from_metadata(restored[1]["skipped_batches"])
        else:
            self.state = create_state(self.config, self.mesh) if first is None else first
            self.step, self.skipped = 0, skipped or SkippedBatches()
        self.pending = None
        if self.prefetcher:
            self.prefetcher.close()
        self.prefetcher = Prefetcher(self._read, self.step, self.config.training.steps)

    def _read(self, step: int) -> dict[str, jax.Array]:
        """Return the batch of the step after `step` steps, on its way to the devices; the prefetcher's thread calls."""
        return placed(self.loader.batch(self.skipped.batch(step)), self.batch)

    def _advance(self) -> None:
        """Take one step, or none if the run is told to stop while it waits for a batch."""
        training = self.config.training
        batch = self._next_batch()
        if batch is None:
            return
        if self.profiler.begins_at(self.step + 1):
            self._settle()
            self.profiler.start()
        with self.profiler.step(self.step + 1):
            self.state, metrics = self.train_step(self.state, batch, self.byte_lengths_V)
        self.step += 1
        # The step before has ended by now or soon will, and this one is queued: reading does not stall the devices.
        self._settle()
        self.pending = (self.step, metrics)
        self.checkpoints.check()
        if self.profiler.ends_at(self.step):
            self._settle()
            self.profiler.stop()
        kept = training.keep_every and self.step % training.keep_every == 0
        save = kept or self.step % training.checkpoint_every == 0 or self.step == training.steps
        if save or self.step % training.validate_every == 0:
            self._settle()
            self._validate_and_save(save)
            self.watch.goodput(self.step)

    def _next_batch(self) -> dict[str, jax.Array] | None:
        """Return the next batch, None if the run is told to stop before there is one."""
        batch = self._take(0.0)
        if batch is None:
            # Only when the step before is done do the devices wait: until then no time is lost. Several hosts read a
            # step's metrics at the same place all, whoever waits for rows: what they decide by them, such as to go
            # back, they do together, or one would be a step behind the others.
            if jax.process_count() == 1:
                self._settle()
            with self.goodput.phase("input"):
                # Several hosts stop after the same step or not at all: one alone must not give up the wait.
                while batch is None and not (self.interrupts.caught and jax.process_count() == 1):
                    batch = self._take(_LISTEN_SECONDS)
        return batch

    def _take(self, seconds: float) -> dict[str, jax.Array] | None:
        try:
            return self.prefetcher.take(seconds)
        except Exception as error:
            # What was done before it still counts; of several hosts one does not judge it alone (see `_next_batch`).
            if jax.process_count() == 1:
                self._settle()
            if not isinstance(error, OSError):
                raise
            raise RunFailed(
                f"step {self.step + 1}: its rows cannot be read: {error}; {self.checkpoints.last_good()}"
            ) from error

    def _settle(self) -> None:
        """Read the metrics of the step that is pending, judge it, and tell of it."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        warning = self.judge.check_step(step, metrics)
        if warning:
            self.progress.note(warning)
        training = self.config.training
        self.watch.step(step, metrics, log=step % training.log_every == 0 or step == training.steps or bool(warning))

    def _recover(self, bad: BadStep) -> None:
        """Go back to the newest validated checkpoint and pass over the batches since; or stop, as the policy says."""
        self.checkpoints.wait()
        if bad.policy == "stop":
            raise RunFailed(
                f"{bad.reason}; nothing of it was saved, {self.checkpoints.last_good()}; a lower "
                "training.learning_rate in a new --workdir is the usual remedy; training.nonfinite and training.spikes "
                "say what else to do"
            )
        limit = self.config.training.max_recoveries
        if self.rollbacks_in_a_row >= limit:
            raise RunFailed(
                f"{bad.reason}, after {limit} rollbacks without another checkpoint (training.max_recoveries); "
                f"{self.checkpoints.last_good()}"
            )
        self.rollbacks_in_a_row += 1
        # Gone first: there may not be room for two.
        jax.tree.map(lambda leaf: leaf.delete(), self.state)
        restored = self.checkpoints.restore(abstract_state(self.config, self.mesh), validated=True)
        self._go_on_from(restored, self.skipped.since(restored[1]["step"] if restored else 0, bad.step))
        self.goodput.undo(self.step)
        self.watch.rewind(self.step)
        passed = bad.step - self.step
        self.watch.write(self.step, {"rollback/from_step": bad.step, "rollback/skipped_batches": self.skipped.total})
        self.progress.note(
            f"{bad.reason}: rolled back to step {self.step}; the {passed} batches read since are skipped, "
            f"{self.skipped.total} in all"
        )
        self.progress.phase("training")

    def _validate_and_save(self, save: bool = True) -> None:
        with self.goodput.phase("validation"):
            self.validation = self._validate(self.state["params"], self.step)
        if save:
            with self.goodput.phase("checkpoint"):
                self._save(self.validation["loss"])

    def _validate(self, params: Any, step: int) -> dict[str, float]:
        self.progress.phase("validating")
        sums = self.validator(params)
        result = sums.total()
        # Parameters can be lost in the last update, after its loss was computed: such a state is never saved.
        self.judge.check_validation(step, result["loss"])
        self.watch.write(step, sums.metrics())
        for line in sums.lines(step):
            self.progress.note(line)
        self.progress.phase("training")
        return result

    def _save(self, validation_loss: float | None) -> None:
        self.checkpoints.save(
            self.step,
            self.state,
            self.config.to_dict(),
            self.corpus.manifest.to_dict(),
            validation_loss,
            self.skipped.ranges,
        )
        self.sync()
        self.goodput.mark(self.step)
        self.rollbacks_in_a_row = 0


def _flops_share(config: Config, mesh: Mesh) -> float | None:
    """Return the share of the devices' peak that one token a second makes; None for devices whose peak is not known."""
    chip = chip_of(mesh.devices.flat[0])
    return training_flops(config.model, config.data.row_length) / (chip.device_flops * mesh.size) if chip else None


def _account(directory: pathlib.Path) -> Goodput:
    """Return the account of the wall time, on file for the first of several hosts."""
    return Goodput(directory / accounts.FILE, directory / METRICS) if jax.process_index() == 0 else Goodput(None)


def _metric_writer(directory: pathlib.Path, start: int) -> MetricWriter | NoMetrics:
    return MetricWriter(directory, resume_step=start) if jax.process_index() == 0 else NoMetrics()


def _console() -> rich.console.Console | None:
    """Return what the run is shown on: on several hosts the first one's, or the same lines would come from all."""
    return None if jax.process_index() == 0 else rich.console.Console(file=open(os.devnull, "w"))
