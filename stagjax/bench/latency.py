"""The latency benchmark: decode steps and prefills of a model and of what it is compared with, measured in one run."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from stagjax import memory
from stagjax.bench import hlo
from stagjax.bench.cases import Case, Subject, cases
from stagjax.bench.components import programs_of, split
from stagjax.bench.ledger import HOPS, PUBLISHED, Calibration, Network, ledgers
from stagjax.bench.programs import decode_program, prefill_program
from stagjax.bench.roofline import Peakmeter, roofline
from stagjax.bench.running import DecodeRun, Pool, ProgramRun, random_arrays
from stagjax.bench.timing import Timing, in_turns
from stagjax.decoding.placement import RECURRENT
from stagjax.decoding.prefill import choose_chunks
from stagjax.distributed import barrier, takes_part
from stagjax.errors import UserError
from stagjax.hardware import chip_of
from stagjax.mesh import coordinates
from stagjax.model.accounting import count_parameters, decode_flops, forward_flops

# What is measured at every batch and context; the others at the first only.
SWEPT = ("baseline", "baseline_slice", "windows")
PREFILLED = ("model", "baseline", "baseline_slice")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
      repeats: samples of each program.
      warmup: calls of each before the first sample.
      tokens: drawn in one call, 2 to 32: a sample is a call's time over these.
      calibrations: of the estimates beside the measurements, on TPUs.
    """

    repeats: int = 20
    warmup: int = 2
    tokens: int = 16
    calibrations: tuple[Calibration, ...] = (HOPS, PUBLISHED)

    def check(self) -> None:
        """Raise `UserError` for values out of range."""
        if self.repeats < 1 or self.warmup < 0:
            raise UserError(f"--repeats={self.repeats}, --warmup={self.warmup}: use 1 or more, and 0 or more")
        if not 2 <= self.tokens <= 32:
            raise UserError(f"--tokens={self.tokens} is outside 2..32, the tokens that one call draws")


class LatencyBenchmark:
    """Measures one subject; every method adds to `result`, which is JSON at any time.

    On several processes all of them call the same methods in the same order; the first one's times count.

    Args:
      subject: what is compared.
      settings: how.
      on_step: called with what is done next, and how much of it is done and to do.
    """

    def __init__(self, subject: Subject, settings: Settings, on_step: Callable[[str, int, int], None]):
        settings.check()
        self.subject, self.settings, self.on_step = subject, settings, on_step
        self.peakmeter = Peakmeter(subject.model.compute_dtype)
        self.result: dict[str, Any] = {"rows": [], "splits": [], "prefill": []}

    def decode(self, batch: int, context: int, against: Sequence[str]) -> None:
        """Measure the decode step of the model and its comparators at one batch and context."""
        found = cases(self.subject, batch, context, against)
        pool, point = Pool(), f"batch {batch}, {context} slots"
        runs = dict(self._ready(found, lambda case: DecodeRun(case.placement, case.batch, context, pool), point))
        tokens = self.settings.tokens
        programs = {case.key: self._timed(case, runs[case.key], lambda run: run.call(tokens)) for case in found}
        timings = {key: timing.scaled(1 / tokens) for key, timing in self._in_turns(programs, point).items()}
        rows = [self._row(case, timings[case.key]) for case in found]
        for row in rows:
            row["batch_asked"] = batch
            row["ratios"] = {
                other["role"]: row["measured"]["median_ms"] / other["measured"]["median_ms"]
                for other in rows
                if other["role"] in ("baseline", "baseline_slice")
            }
        self.result["rows"] += rows

    def split(self, batch: int, context: int, roles: Sequence[str]) -> None:
        """Measure where the step's time goes, for the model and for some of its comparators."""
        for case in cases(self.subject, batch, context, [role for role in roles if role != "model"]):
            if case.role in roles:
                self.result["splits"].append(self._split(case))

    def prefill(self, batch: int, length: int) -> None:
        """Measure the prefill of prompts of `length` tokens; on slices plain and pipelined over chunks."""
        point = f"prefill, batch {batch}, {length} tokens"
        pool, found = Pool(), []
        for case in cases(self.subject, batch, length, [role for role in PREFILLED if role != "model"]):
            # A short prompt is not worth a second chunk: then there is nothing to pipeline.
            rows = batch // case.placement.mesh.shape["data"]
            for chunks in sorted({1, choose_chunks(case.placement, rows, length)}):
                found.append((case, chunks, prefill_program(case.placement, batch, length, chunks)))
        programs = {}
        for number, (case, _, traceable) in enumerate(found):
            self.on_step(f"compiling {point}: {case.name}", number, len(found))
            run = None
            if takes_part(case.placement.mesh):
                arguments = (pool.arrays(traceable.arguments[0]), *random_arrays(traceable.arguments[1:]))
                run = ProgramRun(traceable, arguments)
            programs[number] = self._timed(case, run, lambda run: run.call())
        timings = self._in_turns(programs, point)
        for number, (case, chunks, traceable) in enumerate(found):
            self.result["prefill"].append(self._prefill_row(case, chunks, traceable, timings[number]))

    def _ready(self, found: Sequence[Case], make: Callable[[Case], Any], point: str) -> Iterator[tuple[str, Any]]:
        """Yield each case's key and what is timed of it; None where this process has no part in it."""
        for number, case in enumerate(found):
            self.on_step(f"compiling {point}: {case.name}", number, len(found))
            with memory.told(
                f"{case.key} at {point} does not fit beside what was made before it; compare with less "
                "(--against=baseline,baseline_slice), or lower --batch or --context"
            ):
                yield case.key, make(case) if takes_part(case.placement.mesh) else None

    def _timed(self, case: Case, run: Any, call: Callable[[Any], float]) -> Callable[[], float]:
        """Return what is timed: all processes begin together, and those without a part wait for the next time."""

        def program() -> float:
            barrier(case.key)
            return math.nan if run is None else call(run)

        return program

    def _in_turns(self, programs: dict[Any, Callable[[], float]], point: str) -> dict[Any, Timing]:
        total = len(programs) * (self.settings.repeats + self.settings.warmup)
        done = iter(range(total))
        return in_turns(
            programs,
            self.settings.repeats,
            self.settings.warmup,
            lambda *_: self.on_step(f"measuring {point}", next(done), total),
        )

    def _row(self, case: Case, timing: Timing) -> dict[str, Any]:
        placement, model = case.placement, case.model
        traceable = decode_program(placement, case.batch, case.context)
        devices = placement.mesh.size
        flops = decode_flops(model, case.context, placement.mode == RECURRENT) * case.batch / devices
        return {
            **_described(case),
            "context": case.context,
            "parameters": count_parameters(model).total,
            "bytes_per_device": traceable.held,
            "measured": timing.to_dict(),
            "tokens_per_second": 1e3 * case.batch / timing.median_ms,
            "roofline": self._roofline(case, traceable.read, flops, timing),
            "ledgers": self._ledgers(case, traceable),
        }

    def _prefill_row(self, case: Case, chunks: int, traceable: Any, timing: Timing) -> dict[str, Any]:
        slices, length = case.placement.slices, case.context
        flops = forward_flops(case.model, length) * case.batch * length / case.placement.mesh.size
        form = "one slice" if slices == 1 else "plain" if chunks == 1 else "pipelined over chunks"
        return {
            **_described(case),
            "length": length,
            "form": form,
            "measured": timing.to_dict(),
            "tokens_per_second": 1e3 * case.batch * length / timing.median_ms,
            "roofline": self._roofline(case, traceable.read, flops, timing),
        }

    def _roofline(self, case: Case, read_bytes: float, flops: float, timing: Timing) -> dict[str, Any]:
        peaks = self.peakmeter.peaks(case.placement.mesh, read_bytes)
        floor = roofline(read_bytes, flops, peaks)
        return {
            "read_bytes": read_bytes,
            "flops": flops,
            "floor_ms": floor.floor_ms,
            "bound": floor.bound,
            "share": floor.floor_ms / timing.median_ms,
            "peaks": peaks.to_dict(),
        }

    def _ledgers(self, case: Case, traceable: Any) -> list[dict[str, Any]]:
        """Return the plan's estimates of the very step that was measured, where its chips and their links are known."""
        devices = list(self.subject.devices) or jax.devices()
        chip = chip_of(devices[0])
        if chip is None or chip.link_bandwidth is None or coordinates(devices[0]) is None:
            return []
        network = Network.of(case.placement.mesh, devices)
        program = hlo.parse(traceable.function.lower(*traceable.arguments).compile().as_text())
        floors = {"hbm": 1e3 * traceable.read / chip.device_bandwidth}
        found = ledgers(program, network, floors, self.settings.calibrations)
        return [ledger.to_dict() for ledger in found]

    def _split(self, case: Case) -> dict[str, Any]:
        tokens, point = self.settings.tokens, f"the parts of {case.name}"
        placements, pool, runs = programs_of(case.placement), Pool(), {}
        for number, (left, placement) in enumerate(placements.items()):
            self.on_step(f"compiling {point}", number, len(placements))
            present = takes_part(placement.mesh)
            runs[left] = DecodeRun(placement, case.batch, case.context, pool) if present else None
        programs = {left: self._timed(case, run, lambda run: run.call(tokens)) for left, run in runs.items()}
        programs["one"] = self._timed(case, runs[frozenset()], lambda run: run.call(1))
        timings = self._in_turns(programs, point)
        figures = split(case.placement, timings.__getitem__, timings["one"], tokens)
        return {**_described(case), "context": case.context, **figures.to_dict()}


def _described(case: Case) -> dict[str, Any]:
    placement = case.placement
    return {
        "name": case.name,
        "role": case.role,
        "decoding": placement.mode,
        "mesh": dict(placement.mesh.shape),
        "devices": placement.mesh.size,
        "batch": case.batch,
        "form": {"heads": placement.heads, "rows": placement.rows},
        "model": dataclasses.asdict(case.model),
    }
