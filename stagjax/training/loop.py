"""The training loop: one run from its first or last saved step to its end, in a directory of its own."""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh

from stagjax import distributed
from stagjax import workdir as workdirs
from stagjax.checkpoint import Checkpoints
from stagjax.config import Config
from stagjax.data.corpus import Corpus, load_corpus
from stagjax.data.loader import RowLoader, validation_batches
from stagjax.errors import RunFailed
from stagjax.hardware import chip_of
from stagjax.mesh import training_mesh
from stagjax.model.accounting import training_flops
from stagjax.model.pipelining import pipeline_report
from stagjax.reporting.metrics import MetricWriter, NoMetrics
from stagjax.reporting.progress import Progress
from stagjax.sharding import check_training
from stagjax.training.initial import find_origin
from stagjax.training.interrupts import Interrupts
from stagjax.training.placing import gathered, own_rows, placed
from stagjax.training.state import TrainState, abstract_state, create_state
from stagjax.training.step import training_program, validation_program
from stagjax.training.validation import SubsetSums


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
      step: the last step, saved.
      validation: "loss" (nats per token) and "bits_per_byte" at that step; empty if the run had ended before.
    """

    step: int
    validation: dict[str, float]


def train(config: Config, workdir: pathlib.Path, init_from: str | None = None) -> Summary:
    """Train `config` in `workdir` on all devices, going on from the newest checkpoint that is whole.

    Args:
      config: the experiment.
      workdir: the run's own directory.
      init_from: where a new run takes its parameters from (see `stagjax.training.initial`); None draws them.

    Raises:
      UserError: a mesh, data, vocabulary, workdir or `init_from` that cannot be used.
      RunFailed: a loss that is not finite, a full disk; the last good checkpoint is named.
      Preempted: SIGTERM; the state is saved.
      KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    mesh = training_mesh(config.mesh)
    rows = config.training.global_batch // config.training.accumulation
    check_training(config.model, mesh, rows, config.training.microbatches)
    with workdirs.owned(workdir) as directory, Interrupts() as interrupts:
        workdirs.check_config(directory.path, config)
        origin = find_origin(workdir, config.model, init_from, directory.path)
        corpus = load_corpus(config.data, config.model.vocab_size)
        if origin:
            origin.check_vocabulary(corpus.manifest)
        workdirs.claim(directory.path, config, corpus.manifest)
        if origin:
            origin.record(directory.path)
        checkpoints = Checkpoints(workdir, config.training.keep_last)
        try:
            restored = checkpoints.restore(abstract_state(config, mesh))
            start = restored[1]["step"] if restored else 0
            state = restored[0] if restored else origin and origin.state(config, mesh)
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
                run = _Run(config, mesh, corpus, checkpoints, writer, progress, interrupts, directory.sync)
                return run.go(state, start, came_from_elsewhere=restored is None and origin is not None)
        finally:
            checkpoints.close()


class _Run:
    """What the parts of the loop share; `go` is the way of a batch."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        corpus: Corpus,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        progress: Progress,
        interrupts: Interrupts,
        sync: Callable[[], None],
    ):
        self.config, self.mesh, self.corpus, self.checkpoints = config, mesh, corpus, checkpoints
        self.writer, self.progress, self.interrupts = writer, progress, interrupts
        self.sync = sync
        chip = chip_of(mesh.devices.flat[0])
        peak = chip and chip.flops * mesh.size
        self.flops_share = peak and training_flops(config.model, config.data.row_length) / peak

    def go(self, state: TrainState | None, step: int, came_from_elsewhere: bool) -> Summary:
        """Run from `state`, that of `step`, to the last step; None is the state of fresh parameters."""
        training = self.config.training
        if step:
            self.progress.note(f"going on from step {step}")
        if step >= training.steps:
            self.progress.note(f"step {training.steps} is the last one: there is nothing left to train")
            return Summary(step, {})
        state = self._compile(state)
        validation: dict[str, float] = {}
        if came_from_elsewhere:
            # Saved at once: from here on the run does not need the place where its parameters came from.
            self._save(state, step, self._validate(state["params"], step)["loss"])
        pending = None
        self.clock = _Clock()
        while step < training.steps and not self.interrupts.stop():
            batch = placed(self.loader.batch(step), self.batch)
            state, metrics = self.train_step(state, batch, self.byte_lengths_V)
            step += 1
            # The step before has ended by now or soon will, and this one is queued: reading does not stall the device.
            self._settle(pending)
            pending = (step, metrics)
            save = step % training.checkpoint_every == 0 or step == training.steps
            if save or step % training.validate_every == 0:
                self._settle(pending)
                pending = None
                with self.clock.paused():
                    validation = self._validate(state["params"], step)
                    if save:
                        self._save(state, step, validation["loss"])
        self._settle(pending)
        if step < training.steps:
            self._save(state, step, None)
            self.checkpoints.wait()
            distributed.part()
            raise self.interrupts.error(step)
        self.progress.phase("saving")
        self.checkpoints.wait()
        return Summary(step, validation)

    def _compile(self, state: TrainState | None) -> TrainState:
        self.progress.phase("compiling")
        begun = time.perf_counter()
        if state is None:
            state = create_state(self.config, self.mesh)
        step, arguments = training_program(self.config, self.mesh)
        self.train_step = step.lower(*arguments).compile()
        _, self.batch, lengths = arguments
        own = own_rows(self.batch["inputs"])
        self.loader = RowLoader(self.corpus.train, self.config.training.global_batch, self.config.training.seed, own)
        step, arguments = validation_program(self.config, self.mesh)
        self.validation_step = step.lower(*arguments).compile()
        self.validation_batch = arguments[1]
        byte_lengths_V = np.zeros(lengths.shape, lengths.dtype)
        byte_lengths_V[: self.corpus.vocabulary.size] = self.corpus.vocabulary.byte_lengths
        self.byte_lengths_V = placed(byte_lengths_V, lengths)
        seconds = time.perf_counter() - begun
        self.writer.write(int(state["step"]), {"compile/seconds": seconds})
        self.progress.note(f"compiled in {seconds:.1f} s")
        self.progress.phase("training")
        return state

    def _settle(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Read a step's metrics, stop the run if they are not finite, and log them where that is due."""
        if pending is None:
            return
        step, metrics = pending[0], {name: float(value) for name, value in pending[1].items()}
        self._check_finite(step, {name: metrics[name] for name in ("loss", "gradient_norm")})
        self.clock.tokens += metrics.pop("tokens")
        if step % self.config.training.log_every == 0 or step == self.config.training.steps:
            metrics["tokens_per_second"] = self.clock.speed()
            if self.flops_share:
                metrics["mfu"] = metrics["tokens_per_second"] * self.flops_share
            self.writer.write(step, {f"train/{name}": value for name, value in metrics.items()})
            self.progress.update(
                step,
                loss=metrics["loss"],
                bits_per_byte=metrics["bits_per_byte"],
                tokens_per_second=metrics["tokens_per_second"],
            )

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if all(math.isfinite(value) for value in values.values()):
            return
        self.checkpoints.wait()
        last = self.checkpoints.latest()
        good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is step {last}"
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        raise RunFailed(
            f"step {step}: {shown}; nothing of it was saved, {good}; "
            "a lower training.learning_rate in a new --workdir is the usual remedy"
        )

    def _validate(self, params: Any, step: int) -> dict[str, float]:
        self.progress.phase("validating")
        sums = SubsetSums(self.corpus.subsets)
        for batch in self._validation_batches():
            subsets_B = gathered(batch.pop("subsets"), self.validation_batch["inputs"])
            batch = placed(batch, self.validation_batch)
            sums.add(self.validation_step(params, batch, self.byte_lengths_V), subsets_B)
        result = sums.total()
        # Parameters can be lost in the last update, after its loss was computed: such a state is never saved.
        self._check_finite(step, {"validation_loss": result["loss"]})
        self.writer.write(step, sums.metrics())
        for line in sums.lines(step):
            self.progress.note(line)
        self.progress.phase("training")
        return result

    def _validation_batches(self) -> Iterator[dict[str, np.ndarray]]:
        training = self.config.training
        rows = training.global_batch // training.accumulation
        own = own_rows(self.validation_batch["inputs"])
        return validation_batches(self.corpus.validation, rows, training.validation_rows, own)

    def _save(self, state: TrainState, step: int, validation_loss: float | None) -> None:
        self.checkpoints.save(step, state, self.config.to_dict(), self.corpus.manifest.to_dict(), validation_loss)
        self.sync()


def _metric_writer(workdir: pathlib.Path, start: int) -> MetricWriter | NoMetrics:
    return MetricWriter(workdir, resume_step=start) if jax.process_index() == 0 else NoMetrics()


def _console() -> rich.console.Console | None:
    """Return what the run is shown on: on several hosts the first one's, or the same lines would come from all."""
    return None if jax.process_index() == 0 else rich.console.Console(file=open(os.devnull, "w"))


class _Clock:
    """Tokens per second of training alone: validation and saving are paused out."""

    def __init__(self):
        self.tokens = 0.0
        self._since = time.perf_counter()

    def speed(self) -> float:
        """Return tokens per second since the last call, and begin anew."""
        now = time.perf_counter()
        speed = self.tokens / max(now - self._since, 1e-9)
        self.tokens, self._since = 0.0, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - begun
