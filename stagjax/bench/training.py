"""The training benchmark: tokens per second, MFU, memory and FLOPs of variants of a model, measured in one run.

What is timed is the program that trains. Its state and its batch are random: what a step costs does not depend on them.
"""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stagjax import memory
from stagjax.bench.programs import train_program
from stagjax.bench.roofline import Peakmeter, Peaks
from stagjax.bench.running import random_arrays
from stagjax.bench.timing import Timing
from stagjax.config import Config
from stagjax.distributed import barrier, takes_part
from stagjax.errors import RunFailed, UserError
from stagjax.mesh import training_mesh
from stagjax.model.accounting import count_parameters, training_flops
from stagjax.model.kernels import choose_kernel
from stagjax.model.pipelining import bubble, num_microbatches
from stagjax.sharding import check_training
from stagjax.training.step import check_memory, step_memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
      steps: timed in each round, after one that is not.
      rounds: passes over all variants: where they differ the machine has drifted.
    """

    steps: int = 5
    rounds: int = 2

    def check(self) -> None:
        """Raise `UserError` for values out of range."""
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"--{name}={value} is below 1; use 1 or more")


class TrainingRun:
    """A compiled training step; its state and batch are held only while it is measured: two may not fit side by side.

    Args:
      config: of the experiment.
      mesh: that it trains on.

    Attributes:
      seconds: of compiling.
      bytes_per_device: what the compiled step needs: arguments, results that do not lie where they lay, temporaries.
      metrics: of the last step, as `stagjax.training.step.make_train_step` names them.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh):
        check_memory(config, mesh)
        traceable = train_program(config, mesh)
        begun = time.perf_counter()
        self.compiled = traceable.function.lower(*traceable.arguments).compile()
        self.seconds = time.perf_counter() - begun
        self.bytes_per_device = memory.compiled_bytes(self.compiled)
        check_memory(config, mesh, self.compiled)
        self.metrics: dict[str, jax.Array] = {}
        shardings = jax.tree.map(lambda leaf: leaf.sharding, traceable.arguments)
        make = lambda: _random_arguments(config, *traceable.arguments)
        self._make = jax.jit(make, out_shardings=shardings)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold a random state and a random batch on the devices; afterwards they are free for another's."""
        self._state, *self._inputs = self._make()
        try:
            yield
        finally:
            self._state = self._inputs = None

    def call(self) -> float:
        """Take one step and wait for its metrics; return the seconds that it took."""
        begun = time.perf_counter()
        self._state, self.metrics = self.compiled(self._state, *self._inputs)
        jax.block_until_ready(self.metrics)
        return time.perf_counter() - begun


class TrainingBenchmark:
    """Measures training steps of variants, one after the other; `result` is JSON at any time.

    On several processes all of them call the same methods in the same order; the first one's times count.

    Args:
      variants: names and configs. All are compiled here.
      settings: how they are measured.
      on_step: called with what is done next, and how much of it is done and to do.
      devices: that all variants train on; None for all.
    """

    def __init__(
        self,
        variants: Sequence[tuple[str, Config]],
        settings: Settings,
        on_step: Callable[[str, int, int], None],
        devices: Sequence[jax.Device] | None = None,
    ):
        settings.check()
        self.settings, self.on_step = settings, on_step
        self._rounds = 0
        meshes = []
        for name, config in variants:
            with _named(name, config):
                meshes.append(training_mesh(config.mesh, devices))
                rows = config.training.global_batch // config.training.accumulation
                # All of them now: what is wrong with the last shall not be told after minutes of compiling the others.
                check_training(config.model, meshes[-1], rows, config.training.microbatches)
        peakmeters = {config.model.compute_dtype: Peakmeter(config.model.compute_dtype) for _, config in variants}
        self._subjects = []
        for number, ((name, config), mesh) in enumerate(zip(variants, meshes, strict=True)):
            on_step(f"compiling {name}", number, len(variants))
            with _named(name, config):
                run = TrainingRun(config, mesh) if takes_part(mesh) else None
            # Of the peaks only the FLOP/s are used: the working set does not matter.
            peaks = peakmeters[config.model.compute_dtype].peaks(mesh, working_set=1 << 20)
            self._subjects.append(_Subject(name, config, mesh, run, peaks))

    def measure_round(self) -> None:
        """Take a warm-up step and the timed steps of every variant."""
        total = len(self._subjects) * (self.settings.steps + 1)
        done = iter(range(total))
        self._rounds += 1
        text = f"round {self._rounds} of {self.settings.rounds}: training"
        for subject in self._subjects:
            with _named(subject.name, subject.config):
                # The name as a default: it is another one in the next turn.
                subject.measure(
                    self.settings.steps, lambda name=subject.name: self.on_step(f"{text} {name}", next(done), total)
                )

    @property
    def result(self) -> dict[str, Any]:
        """The rows of all variants that were measured, in their order."""
        rows = [subject.row() for subject in self._subjects if subject.rounds_ms]
        for row in rows:
            row["ratio"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
            row["flops_ratio"] = row["flops_per_token"] / rows[0]["flops_per_token"]
        return {"rows": rows}


class _Subject:
    """One variant: what is run, nothing where this process has none of its devices, and what was measured."""

    def __init__(self, name: str, config: Config, mesh: jax.sharding.Mesh, run: TrainingRun | None, peaks: Peaks):
        self.name, self.config, self.mesh, self.run, self.peaks = name, config, mesh, run, peaks
        self.rounds_ms: list[list[float]] = []
        self.peak_bytes: int | None = None
        self.peak_is_own = False

    def measure(self, steps: int, on_step: Callable[[], None]) -> None:
        """Take one step that is not timed and `steps` that are."""
        before = _peak_bytes(self.mesh)
        times = []
        with self.run.held() if self.run else contextlib.nullcontext():
            for step in range(steps + 1):
                on_step()
                barrier(self.name)
                seconds = self.run.call() if self.run else math.nan
                if step:
                    times.append(1e3 * seconds)
        self.rounds_ms.append(times)
        after = _peak_bytes(self.mesh)
        if self.peak_bytes is None and after is not None:
            self.peak_bytes, self.peak_is_own = after, after > (before or 0)

    def row(self) -> dict[str, Any]:
        """Return all figures that do not compare it with another."""
        config, mesh = self.config, self.mesh
        model, training = config.model, config.training
        timing = Timing(tuple(sample for times in self.rounds_ms for sample in times))
        tokens_per_second = 1e3 * training.global_batch * config.data.row_length / timing.median_ms
        flops = training_flops(model, config.data.row_length)
        platform = mesh.devices.flat[0].platform
        return {
            "name": self.name,
            "model": dataclasses.asdict(model),
            "mesh": dict(mesh.shape),
            "devices": mesh.size,
            "parameters": count_parameters(model).total,
            "global_batch": training.global_batch,
            "row_length": config.data.row_length,
            "accumulation": training.accumulation,
            "compute_dtype": model.compute_dtype,
            "remat": training.remat,
            "attention": choose_kernel(training.attention, platform, model.compute_dtype, model.head_dim),
            **_pipeline(config, mesh),
            "compile_seconds": self.run.seconds if self.run else math.nan,
            "measured": timing.to_dict(),
            "rounds_ms": [statistics.median(times) for times in self.rounds_ms],
            "tokens_per_second": tokens_per_second,
            "flops_per_token": flops,
            "mfu": flops * tokens_per_second / (mesh.size * self.peaks.flops),
            "peaks": {"flops": self.peaks.flops, "source": self.peaks.source},
            "memory": {
                "compiled_bytes_per_device": self.run.bytes_per_device if self.run else None,
                "peak_bytes_per_device": self.peak_bytes,
                "peak_is_own": self.peak_is_own,
            },
        }


@contextlib.contextmanager
def _named(name: str, config: Config) -> Iterator[None]:
    """Say of which variant an error is; make one for what does not fit."""
    try:
        with memory.told(step_memory(config)):
            yield
    except (UserError, RunFailed) as error:
        raise type(error)(f"{name}: {error}") from error


def _random_arguments(config: Config, state: Any, batch: Any, lengths: Any) -> tuple[Any, ...]:
    """Return arrays of the abstract arguments of a step: rows of one document each, of random ids."""
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
    inputs_key, targets_key = jax.random.split(jax.random.key(0))
    draw = lambda key, leaf: jax.random.randint(key, leaf.shape, 0, config.model.vocab_size, leaf.dtype)
    positions = batch["positions"]
    # Moments of zero are those of a first step; random ones could be below zero, which a square is not.
    state = jax.tree.map(zeros, state) | {"params": random_arrays(state["params"])}
    batch = {
        "inputs": draw(inputs_key, batch["inputs"]),
        "targets": draw(targets_key, batch["targets"]),
        "positions": jnp.broadcast_to(jnp.arange(positions.shape[1], dtype=positions.dtype), positions.shape),
        "segment_ids": jnp.ones(batch["segment_ids"].shape, batch["segment_ids"].dtype),
        "loss_weights": jnp.ones(batch["loss_weights"].shape, batch["loss_weights"].dtype),
    }
    return state, batch, jnp.ones(lengths.shape, lengths.dtype)


def _pipeline(config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return how stacks are pipelined over slices; None where they are not."""
    if mesh.shape["stack"] == 1:
        return {"microbatches": None, "bubble": None}
    microbatches = num_microbatches(config, mesh)
    return {"microbatches": microbatches, "bubble": bubble(config.model.num_stacks, microbatches)}


def _peak_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Return the most bytes that a device of this process has held since it began; None where that is not told."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return max((known["peak_bytes_in_use"] for known in stats if "peak_bytes_in_use" in known), default=None)
