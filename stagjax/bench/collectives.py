"""The collectives of a program: what they are called in terms of the mesh, and how often they run."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stagjax.bench.hlo import Computation, Program
from stagjax.bench.hlo_text import Groups, Instruction


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: HLO's name: "all-reduce", "all-gather", "reduce-scatter", "collective-permute" or "all-to-all". The TPU
        compiler turns small gathers and scatters into all-reduces; see `primitive`.
      axis: mesh axes along which chips talk, e.g. "tensor" or "stack,tensor"; "part of tensor" for subgroups.
      primitive: what JAX asked for, the end of `op_name`, e.g. "psum", "all_gather"; under GSPMD what it serves.
      count: how often it runs, trip counts multiplied.
      bytes: what each participating chip gives to one run.
      groups: positions in the flattened mesh that talk to each other; (source, target) pairs of a permute.
      instruction: the instruction that runs or starts it.
      asynchronous: whether other work may run between its start and its end.
      channel: HLO's number of it.
      op_name: JAX's name with all scopes.
    """

    kind: str
    axis: str
    primitive: str
    count: int
    bytes: int
    groups: Groups
    instruction: str
    asynchronous: bool = False
    channel: int | None = None
    op_name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what a report needs of it."""
        return {name: getattr(self, name) for name in ("kind", "axis", "primitive", "count", "bytes", "asynchronous")}


def collectives(
    program: Program, mesh_shape: Mapping[str, int], computation: Computation | None = None
) -> list[Collective]:
    """Return the collectives of a program in the order in which they run, those inside loops once with their count.

    Args:
      program: as `hlo.parse` read it.
      mesh_shape: sizes of the mesh axes (`mesh.shape`) for which the program was compiled.
      computation: of which to return them; None for the whole program.

    Raises:
      ValueError: the program was compiled for another number of chips.
    """
    if program.chips != math.prod(mesh_shape.values()):
        raise ValueError(f"the program runs on {program.chips} chips, not on a mesh of {dict(mesh_shape)}")
    start = computation.instructions.values() if computation else None
    found = (collective_of(program, instruction, mesh_shape, times) for instruction, times in program.walk(start))
    return [collective for collective in found if collective]


def collective_of(
    program: Program, instruction: Instruction, mesh_shape: Mapping[str, int], times: int = 1
) -> Collective | None:
    """Return the collective that an instruction runs or starts `times` times, None if it does neither."""
    inner = program.collective(instruction)
    if inner is None:
        return None
    pairs = inner.kind == "collective-permute"
    groups = inner.groups or (tuple(range(program.chips)),)
    return Collective(
        kind=inner.kind,
        axis=axis_of(groups, mesh_shape, pairs),
        primitive=inner.op_name.rpartition("/")[2],
        count=times,
        bytes=inner.operand_bytes,
        groups=groups,
        instruction=instruction.name,
        asynchronous=instruction.opcode.endswith("-start") or inner.chain is not None,
        channel=inner.channel,
        op_name=inner.op_name,
    )


def axis_of(groups: Groups, mesh_shape: Mapping[str, int], pairs: bool = False) -> str:
    """Name the mesh axes along which the members of each group differ.

    Args:
      groups: positions in the flattened mesh.
      mesh_shape: sizes of the mesh axes.
      pairs: the groups are (source, target) pairs: they need not reach every position of an axis.

    Returns:
      Axes joined by commas, in mesh order; with "part of " before them if some group leaves out positions that differ
      along these axes only; "none" for groups of one.
    """
    sizes = tuple(mesh_shape.values())
    differs = np.zeros(len(sizes), bool)
    for group in groups:
        positions = np.stack(np.unravel_index(group, sizes), axis=-1)
        differs |= (positions != positions[:1]).any(axis=0)
    names = ",".join(name for name, along in zip(mesh_shape, differs, strict=True) if along)
    whole = math.prod(size for size, along in zip(sizes, differs, strict=True) if along)
    if pairs or all(len(set(group)) == whole for group in groups):
        return names or "none"
    return f"part of {names}"


def tally(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Add up collectives that differ in nothing but their place: kind, axis, primitive, count and bytes of one."""
    counts = collections.Counter()
    for collective in found:
        row = collective.to_dict()
        count = row.pop("count")
        counts[tuple(row.items())] += count
    return [{**dict(row), "count": count} for row, count in counts.most_common()]
