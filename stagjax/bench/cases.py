"""What a StagFormer's decode step is compared with: every model one could run on the same devices instead."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from stagjax.bench.comparators import COMPARATORS
from stagjax.config import ModelConfig
from stagjax.decoding.placement import PADDED, PARALLEL, RECURRENT, Placement, can_recur, make_placement
from stagjax.errors import unknown
from stagjax.mesh import DecodeMesh
from stagjax.model.accounting import count_parameters

WINDOWS = (512, 128, 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program that is measured.

    Attributes:
      name: of the model, shown in reports.
      role: "model", or a name of `COMPARATORS`.
      placement: which model, in which mode, on which devices.
      batch: rows.
      context: slots of the caches, all of them filled.
    """

    name: str
    role: str
    placement: Placement
    batch: int
    context: int

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return self.placement.config

    @property
    def key(self) -> str:
        """Name what was measured, with what it was measured at; no two cases have the same."""
        mode = ", recurrent" if self.placement.mode == RECURRENT else ""
        shape = self.placement.mesh.shape
        return f"{self.name}{mode} {shape['data']}x{shape['stack']}x{shape['tensor']} B{self.batch} S{self.context}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that is compared, and where it runs.

    Attributes:
      name: of its variant.
      model: its shape.
      sizes: of its mesh.
      heads: layout of the heads over the devices, for all cases.
      rows: padding of products, for all cases; None for what the platform wants.
      devices: to choose from.
    """

    name: str
    model: ModelConfig
    sizes: DecodeMesh
    heads: str = PADDED
    rows: int | None = None
    devices: Sequence[jax.Device] = ()

    def case(
        self,
        name: str,
        role: str,
        model: ModelConfig,
        sizes: DecodeMesh,
        batch: int,
        context: int,
        mode: str = PARALLEL,
    ) -> Case:
        """Return a case; the position table is as long as its context needs."""
        model = dataclasses.replace(model, max_length=max(model.max_length, context))
        devices = list(self.devices) or None
        placement = make_placement(model, sizes, mode=mode, heads=self.heads, rows=self.rows, devices=devices)
        return Case(name, role, placement, batch, context)


def cases(subject: Subject, batch: int, context: int, against: Sequence[str]) -> list[Case]:
    """Return the model and what it is compared with at one batch and context; what means nothing for it is left out.

    Raises:
      UserError: an unknown comparator, or a mesh that does not fit.
    """
    for name in against:
        if name not in COMPARATORS:
            raise unknown("--against", name, (*COMPARATORS, "all", "none"))
    found = [subject.case(subject.name, "model", subject.model, subject.sizes, batch, context)]
    for role in COMPARATORS:
        if role in against:
            found += _COMPARED[role](subject, batch, context)
    unique: dict[str, Case] = {}
    for case in found:
        unique.setdefault(case.key, case)
    return list(unique.values())


def default_mesh(model: ModelConfig, mode: str, chips: int) -> DecodeMesh:
    """Return a slice for every running stack, each of the largest power of two of chips."""
    stack = 1 if mode == RECURRENT else model.num_stacks
    return DecodeMesh(stack=stack, tensor=1 << max((chips // stack).bit_length() - 1, 0))


def deep(model: ModelConfig) -> ModelConfig:
    """Return the plain decoder of as many layers as all stacks together."""
    return plain(model, layers_per_stack=model.num_stacks * model.layers_per_stack)


def wide(model: ModelConfig) -> ModelConfig:
    """Return the plain decoder as deep as one stack whose MLP is so wide that it has the model's parameters.

    For separate 2x18 at the paper's size that is a width of exactly 28672.
    """
    shallow = plain(model)
    missing = count_parameters(model).total - count_parameters(shallow).total
    per_unit = 3 * model.model_dim * model.layers_per_stack
    unit = 128 if model.ff_dim % 128 == 0 else 8
    ff_dim = model.ff_dim + unit * round(missing / per_unit / unit)
    return dataclasses.replace(shallow, ff_dim=ff_dim)


def plain(model: ModelConfig, **changes: Any) -> ModelConfig:
    """Return the plain decoder with the layers of one stack, and some fields changed."""
    single = {"num_stacks": 1, "shared_weights": False, "combine": "last"}
    crossing = {"cross_window": None, "cross_attention": "sequential", "lag": 1}
    return dataclasses.replace(model, **single, **crossing, **changes)


def _devices(sizes: DecodeMesh) -> DecodeMesh:
    """Return all devices of a mesh as one slice."""
    return DecodeMesh(data=sizes.data, tensor=sizes.stack * sizes.tensor)


def _slice(sizes: DecodeMesh) -> DecodeMesh:
    return DecodeMesh(data=sizes.data, tensor=sizes.tensor)


def _plain_on(make: Callable[[ModelConfig], ModelConfig], kind: str, role: str, where: Callable) -> Callable:
    def compared(subject: Subject, batch: int, context: int) -> Iterator[Case]:
        if subject.model.num_stacks == 1:
            return
        model = make(subject.model)
        yield subject.case(f"{kind}_{model.layers_per_stack}", role, model, where(subject.sizes), batch, context)

    return compared


def _one_slice(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    if subject.sizes.stack > 1:
        yield subject.case(subject.name, "one_slice", subject.model, _slice(subject.sizes), batch, context)


def _baseline_rows(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    model, rows = deep(subject.model), subject.model.num_stacks * batch
    if subject.model.num_stacks > 1:
        name = f"baseline_{model.layers_per_stack}"
        yield subject.case(name, "baseline_rows", model, _devices(subject.sizes), rows, context)


def _shallow_rows(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    stacks, sizes = subject.model.num_stacks, subject.sizes
    if stacks > 1:
        name = f"baseline_{subject.model.layers_per_stack}"
        apart = DecodeMesh(data=sizes.data * sizes.stack, tensor=sizes.tensor)
        yield subject.case(name, "shallow_rows", plain(subject.model), apart, stacks * batch, context)


def _recurrent(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    if can_recur(subject.model):
        sizes = _devices(subject.sizes)
        yield subject.case(subject.name, "recurrent", subject.model, sizes, batch, context, RECURRENT)


def _windows(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    model = subject.model
    for window in WINDOWS:
        if model.num_stacks > 1 and window < min(model.cross_window or context, context):
            changed = dataclasses.replace(model, cross_window=window)
            yield subject.case(f"{subject.name}, window {window}", "windows", changed, subject.sizes, batch, context)


def _parallel_cross(subject: Subject, batch: int, context: int) -> Iterator[Case]:
    if subject.model.num_stacks > 1 and subject.model.cross_attention == "sequential":
        changed = dataclasses.replace(subject.model, cross_attention="parallel")
        yield subject.case(f"{subject.name}, parallel cross", "parallel_cross", changed, subject.sizes, batch, context)


_COMPARED: dict[str, Callable[[Subject, int, int], Iterator[Case]]] = {
    "baseline": _plain_on(deep, "baseline", "baseline", _devices),
    "baseline_slice": _plain_on(deep, "baseline", "baseline_slice", _slice),
    "wide": _plain_on(wide, "wide", "wide", _devices),
    "wide_slice": _plain_on(wide, "wide", "wide_slice", _slice),
    "one_slice": _one_slice,
    "baseline_rows": _baseline_rows,
    "shallow_rows": _shallow_rows,
    "recurrent": _recurrent,
    "windows": _windows,
    "parallel_cross": _parallel_cross,
}
