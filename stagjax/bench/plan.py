"""What a program costs on a topology that need not be there: compiled ahead of time, then read.

Every figure is the compiler's, the makers' or an estimate (`ledger`); nothing here was measured on a chip.
"""

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from stagjax.bench import hlo
from stagjax.bench.anatomy import Segment, components_ms, handoff, timeline
from stagjax.bench.cases import deep, default_mesh
from stagjax.bench.collectives import collectives, tally
from stagjax.bench.ledger import HOPS, PUBLISHED, Calibration, Ledger, Network, ledgers
from stagjax.bench.programs import Traceable, decode_program, prefill_program, train_program
from stagjax.bench.topology import stand_in, uncached
from stagjax.bench.training_cost import TrainingCost, attention_kernels_ms, flops_floor_ms, training_costs
from stagjax.config import Config
from stagjax.decoding.placement import PADDED, PARALLEL, make_placement
from stagjax.errors import UserError, unknown
from stagjax.hardware import Chip
from stagjax.mesh import DecodeMesh, decoding_mesh, training_mesh
from stagjax.model.accounting import count_parameters

PROGRAMS = ("decode", "prefill", "train")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
      name: shown in reports.
      config: the experiment.
      program: "decode", "prefill" or "train".
      batch: rows decoded at once; training takes its own global batch.
      context: slots of the caches, or tokens of the prompts.
      mesh: of a decode step or prefill; None for a slice a stack, as large as the topology allows.
      mode: "parallel" or "recurrent" decoding.
      heads: how heads are laid out over chips.
      rows: padding of products; None for what a TPU wants.
    """

    name: str
    config: Config
    program: str = "decode"
    batch: int = 1
    context: int = 1280
    mesh: DecodeMesh | None = None
    mode: str = PARALLEL
    heads: str = PADDED
    rows: int | None = None

    def check(self) -> None:
        """Raise `UserError` for values that mean nothing."""
        if self.program not in PROGRAMS:
            raise unknown("--program", self.program, PROGRAMS)
        if self.batch < 1:
            raise UserError(f"--batch={self.batch} is below 1; use 1 or more")
        longest = self.config.model.max_length
        if not 1 <= self.context <= longest:
            raise UserError(f"--context={self.context} is outside 1..{longest}, model.max_length")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one program costs.

    Attributes:
      request: what was planned.
      topology: its name.
      mesh: sizes of the mesh axes.
      chip: what the maker says of it.
      devices: that it uses; a chip is one device, or two.
      idle_devices: of the topology.
      fits: whether a device's memory holds it.
      memory: bytes a device by what they hold; "total" is their sum.
      flops: of one device, by the compiler; None for a program that was not compiled to the end.
      hbm_bytes: that one device moves, by the compiler, which counts what fusions read and write, in fast memory too.
      hbm_floor_ms: weights and caches that must be read, over the memory's bandwidth.
      compiler_cycles: trip counts multiplied; without collectives and Pallas kernels.
      compiler_ms: over the chip's clock.
      kernels: Pallas kernels, whose time is in none of the compiler's figures.
      kernels_ms: of those of a training step, estimated; the ledgers count it.
      components_ms: the compiler's milliseconds by part of a step.
      collectives: `kind`, `axis`, `primitive`, `count`, `bytes`, `asynchronous`.
      handoff: what is known of the handoff, None without one.
      ledgers: estimates of a whole step.
      other_calibrations: those that say nothing of these chips, and the chips that they hold for.
      training: what the whole run costs by each ledger; empty for other programs.
      timeline: the step in order, by the first ledger.
      compile_seconds: of tracing and compiling on this machine.
      advice: what would fit, if this does not.
    """

    request: Request
    topology: str
    mesh: dict[str, int]
    chip: Chip
    devices: int
    idle_devices: int
    fits: bool
    memory: dict[str, int]
    flops: float | None = None
    hbm_bytes: float | None = None
    hbm_floor_ms: float | None = None
    compiler_cycles: int | None = None
    compiler_ms: float | None = None
    kernels: int = 0
    kernels_ms: float = 0.0
    components_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: tuple[dict[str, Any], ...] = ()
    handoff: dict[str, Any] | None = None
    ledgers: tuple[Ledger, ...] = ()
    other_calibrations: dict[str, str] = dataclasses.field(default_factory=dict)
    training: tuple[TrainingCost, ...] = ()
    timeline: tuple[Segment, ...] = ()
    compile_seconds: float = 0.0
    advice: tuple[str, ...] = ()

    def step_ms(self, compute: str, calibration: str) -> float:
        """Return a ledger's estimate of the step."""
        return next(x.step_ms for x in self.ledgers if (x.compute, x.calibration) == (compute, calibration))

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "chip"}
        request = self.request
        described = {
            "name": request.name,
            "program": request.program,
            "batch": request.batch if request.program != "train" else request.config.training.global_batch,
            "context": request.context,
            "decoding": request.mode,
            "heads": request.heads,
            "rows": request.rows,
        }
        own |= {
            "request": described,
            "chips": self.devices // self.chip.devices,
            "idle_chips": self.idle_devices // self.chip.devices,
            "bytes_per_device": self.memory["total"],
            "device_memory": self.chip.memory,
            "parameters": count_parameters(request.config.model).total,
            "training_steps": request.config.training.steps,
            "ledgers": [ledger.to_dict() for ledger in self.ledgers],
            "training": [dataclasses.asdict(cost) for cost in self.training],
            "timeline": [dataclasses.asdict(segment) for segment in self.timeline],
        }
        return own


def plan(
    request: Request,
    topology: str,
    devices: Sequence[jax.Device],
    calibrations: Sequence[Calibration] = (HOPS, PUBLISHED),
) -> Plan:
    """Compile a program for a topology and read it.

    Args:
      request: what.
      topology: name of the topology.
      devices: all of its devices (`topology.topology_devices`).
      calibrations: of the collectives.

    Raises:
      UserError: a mesh, batch or mode that does not fit the model or the topology.
    """
    request.check()
    traceable, network = _traceable(request, devices)
    size = network.mesh.size
    known = {
        "request": request,
        "topology": topology,
        "mesh": dict(network.mesh.shape),
        "chip": network.chip,
        "devices": size,
        "idle_devices": len(devices) - size,
        "other_calibrations": {c.name: ", ".join(c.kinds) for c in calibrations if not c.holds_for(network.chip)},
    }
    begun = time.perf_counter()
    try:
        with uncached():
            compiled = traceable.function.lower(*traceable.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _bytes_needed(str(error))
        if needed is None:
            raise
        needed = max(needed, sum(traceable.held.values()))
        memory = traceable.held | {"temporaries": needed - sum(traceable.held.values()), "total": needed}
        return _with_advice(Plan(fits=False, memory=memory, compile_seconds=time.perf_counter() - begun, **known))
    known["compile_seconds"] = time.perf_counter() - begun
    memory = _memory(traceable, compiled.memory_analysis())
    known |= {"memory": memory, "fits": memory["total"] <= network.chip.memory}
    costs = compiled.cost_analysis() or {}
    known |= {"flops": costs.get("flops"), "hbm_bytes": costs.get("bytes accessed")}
    program = hlo.parse(as_text(compiled))
    estimates = _estimates(request, traceable, network, known["idle_devices"], program, calibrations)
    return _with_advice(Plan(**known, **estimates, **_contents(request, network, program)))


def _contents(request: Request, network: Network, program: hlo.Program) -> dict[str, Any]:
    """Return the fields of a plan that say what the compiled program does."""
    cycles, clock = program.cycles(), network.chip.clock
    contents: dict[str, Any] = {
        "compiler_cycles": cycles.total,
        "kernels": cycles.kernels,
        "collectives": tuple(tally(collectives(program, network.mesh.shape))),
        "handoff": handoff(program, network),
    }
    if clock is not None:
        contents["compiler_ms"] = 1e3 * cycles.total / clock
        contents["components_ms"] = components_ms(program, clock)
        if request.program == "decode":
            contents["timeline"] = timeline(program, network, clock)
    return contents


def _estimates(
    request: Request,
    traceable: Traceable,
    network: Network,
    idle_devices: int,
    program: hlo.Program,
    calibrations: Sequence[Calibration],
) -> dict[str, Any]:
    """Return the fields of a plan that say how long the program takes, and what a run of it costs."""
    config, chip, size = request.config, network.chip, network.mesh.size
    if request.program != "train":
        floor = 1e3 * traceable.read / chip.device_bandwidth
        return {"hbm_floor_ms": floor, "ledgers": tuple(ledgers(program, network, {"hbm": floor}, calibrations))}
    # Weights and activations are read far faster than they are computed with.
    floors = {"flops": flops_floor_ms(config, chip, size)}
    kernels_ms = attention_kernels_ms(config, network.mesh.shape, chip) if program.cycles().kernels else 0.0
    estimates = tuple(ledgers(program, network, floors, calibrations, kernels_ms))
    costs = training_costs(config, chip, size, idle_devices, estimates)
    return {"kernels_ms": kernels_ms, "ledgers": estimates, "training": tuple(costs)}


def matched_baseline(request: Request, tensor: int) -> Request:
    """Return the plain decoder of as many layers as all stacks together, in the same form, on `tensor` chips."""
    model = deep(request.config.model)
    config = dataclasses.replace(request.config, model=model)
    name = f"baseline_{model.layers_per_stack}"
    return dataclasses.replace(request, name=name, config=config, mesh=DecodeMesh(tensor=tensor), mode=PARALLEL)


def _traceable(request: Request, devices: Sequence[jax.Device]) -> tuple[Traceable, Network]:
    """Return the program over stand-ins, and where its chips really are."""
    if request.program == "train":
        mesh = training_mesh(request.config.mesh, devices)
        return train_program(request.config, stand_in(mesh, devices)), Network.of(mesh, devices)
    model = request.config.model
    sizes = request.mesh or default_mesh(model, request.mode, len(devices))
    network = Network.of(decoding_mesh(sizes, devices), devices)
    placement = make_placement(model, sizes, mode=request.mode, heads=request.heads, rows=request.rows, devices=devices)
    placement = dataclasses.replace(placement, mesh=stand_in(network.mesh, devices))
    build = decode_program if request.program == "decode" else prefill_program
    return build(placement, request.batch, request.context), network


def as_text(compiled: Any) -> str:
    """Return a compiled program as text.

    Raises:
      UserError: libtpu's program holds what this jaxlib cannot read, which pairs that belong together do not have.
    """
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        found = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxlib", "libtpu")]
        first = str(error).splitlines()[0][:200]
        raise UserError(
            f"{found[0]} cannot read what {found[1]} has compiled ({first}); "
            "install the libtpu that belongs to this jax: pip install 'jax[tpu]'"
        ) from error


def _memory(traceable: Traceable, analysis: Any) -> dict[str, int]:
    """Split the compiler's account of a chip's memory by what we know of the arguments."""
    parts = dict(traceable.held)
    parts["other arguments"] = max(analysis.argument_size_in_bytes - sum(parts.values()), 0)
    parts["outputs"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    parts["temporaries"] = analysis.temp_size_in_bytes
    parts["program"] = analysis.generated_code_size_in_bytes
    return parts | {"total": sum(parts.values())}


def _bytes_needed(message: str) -> int | None:
    """Return what the compiler says a program would use (at least), None if the error is another one."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    found = found or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    if found is None:
        return None
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _with_advice(plan: Plan) -> Plan:
    """Add what would fit to a plan that does not."""
    if plan.fits:
        return plan
    memory, limit, request = plan.memory, plan.chip.memory, plan.request
    lines = []
    if request.program == "train":
        training = request.config.training
        fixed = memory.get("parameters and optimizer", 0)
        if training.remat == "none":
            lines.append("--config.training.remat=layer (activations of one layer instead of all)")
        parts = training.accumulation
        while fixed + memory["temporaries"] * training.accumulation / parts > limit and parts < training.global_batch:
            parts *= 2
        if parts > training.accumulation and training.global_batch % parts == 0:
            lines.append(f"--config.training.accumulation={parts} (a global batch in {parts} parts; estimate)")
        lines.append(
            f"a topology of more than {plan.devices // plan.chip.devices} chips (parameters are divided over mesh.fsdp)"
        )
    else:
        caches = memory.get("self caches", 0) + memory.get("cross caches", 0)
        fixed = memory["total"] - caches
        rows = int((limit - fixed) / (caches / request.batch)) if caches and limit > fixed else 0
        rows -= rows % plan.mesh["data"]
        if rows:
            lines.append(f"--batch={rows} or less (estimate: {fixed / 2**30:.1f} GiB a device besides the caches)")
        lines.append(
            f"a topology of more than {plan.devices // plan.chip.devices} chips, or a larger tensor axis of --mesh"
        )
        if request.config.model.cross_window is None and memory.get("cross caches"):
            lines.append("a window (--config.model.cross_window=512): cross caches hold that many slots")
    return dataclasses.replace(plan, advice=tuple(lines))
