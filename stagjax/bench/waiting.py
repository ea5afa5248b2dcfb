"""What waits for what in a program: dependencies, what hides a transfer, and the longest chain of collectives.

A question about an instruction is answered within the computation that holds it: the whole program, or the body of a
loop, whose parameters are the state at the beginning of an iteration. Where a value passes through a loop or a fusion
with several results, every result is taken to depend on every operand; a tuple that is only taken apart again is seen
through.
"""

import dataclasses
from collections.abc import Callable, Mapping

from stagjax.bench.collectives import Collective, collective_of
from stagjax.bench.hlo import Computation, Program
from stagjax.bench.hlo_text import Instruction

# These move values, or say who and where a chip is.
_MOVES = frozenset(
    "parameter constant iota partition-id replica-id tuple get-tuple-element bitcast reshape transpose broadcast "
    "convert copy copy-start copy-done slice slice-start slice-done dynamic-slice dynamic-update-slice concatenate "
    "pad select opt-barrier after-all async-done all-reduce-done all-gather-done collective-permute-done".split()
)
_MOVING_CALLS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveDone")


@dataclasses.dataclass(frozen=True)
class Between:
    """What the schedule runs between the start and the end of an asynchronous collective.

    Attributes:
      cycles: the compiler's estimate of it.
      collectives: the collectives among it.
    """

    cycles: int
    collectives: tuple[Collective, ...]


def depends_on(program: Program, first: str, then: str) -> bool:
    """Return whether the instruction `then` needs the result of `first`, both in the same computation."""
    return first in _reached(_operands(_holder(program, then)), then)


def dependents(program: Program, name: str) -> list[Instruction]:
    """Return the instructions that need the result of another one, directly or through others."""
    holder = _holder(program, name)
    users = {instruction: [] for instruction in holder.instructions}
    for user, operands in _operands(holder).items():
        for operand in operands:
            users[operand].append(user)
    reached = _reached(users, name)
    return [instruction for other, instruction in holder.instructions.items() if other in reached]


def waiting(program: Program, name: str) -> list[Instruction]:
    """Return what computes with the result of an instruction: nothing if it is only moved into the returned state."""
    return [
        instruction
        for instruction in dependents(program, name)
        if _computes(program, instruction) or (_integral(instruction) and instruction.opcode not in _MOVES)
    ]


def sources(program: Program, name: str) -> list[Instruction]:
    """Return what an instruction's operands were computed by: nothing if they are parts of the parameters.

    Finding the part (arithmetic on indices and masks) does not count as computing it.
    """
    holder = _holder(program, name)
    reached = _reached(_operands(holder), name)
    return [
        instruction
        for other, instruction in holder.instructions.items()
        if other in reached and _computes(program, instruction) and not _integral(instruction)
    ]


def between(program: Program, start: str, mesh_shape: Mapping[str, int]) -> Between:
    """Return what runs while an asynchronous collective is under way; nothing for a synchronous one."""
    instructions = list(_holder(program, start).instructions.values())
    begin = next(i for i, instruction in enumerate(instructions) if instruction.name == start)
    ends = (i for i in range(begin + 1, len(instructions)) if _ends(program, instructions[begin], instructions[i]))
    walked = list(program.walk(instructions[begin + 1 : next(ends, begin)]))
    found = (collective_of(program, instruction, mesh_shape, times) for instruction, times in walked)
    return Between(sum((i.cycles or 0) * times for i, times in walked), tuple(c for c in found if c))


def chain(
    program: Program,
    mesh_shape: Mapping[str, int],
    weight: Callable[[Collective], float] = lambda collective: 1.0,
    computation: Computation | None = None,
) -> list[Collective]:
    """Return the collectives on the path of dependencies that is longest in them: they cannot overlap on any machine.

    Args:
      program: as `hlo.parse` read it.
      mesh_shape: sizes of the mesh axes for which it was compiled.
      weight: length of one run of a collective.
      computation: in which to look; None for the entry. A loop's own longest path counts once for each trip.
    """
    computation = computation or program.entry
    operands = _operands(computation)
    lengths: dict[str, float] = {}
    steps: dict[str, tuple[str | None, list[Collective]]] = {}
    for name, instruction in computation.instructions.items():
        before = max(operands[name], key=lengths.__getitem__, default=None)
        own = _within(program, instruction, mesh_shape, weight)
        lengths[name] = (lengths[before] if before else 0) + _length(own, weight)
        steps[name] = (before, own)
    path, name = [], max(lengths, key=lengths.__getitem__)
    while name is not None:
        name, own = steps[name]
        path = own + path
    return path


def _within(
    program: Program, instruction: Instruction, mesh_shape: Mapping[str, int], weight: Callable[[Collective], float]
) -> list[Collective]:
    """Return the longest chain inside one instruction."""
    collective = collective_of(program, instruction, mesh_shape)
    if collective:
        return [collective]
    chains = [chain(program, mesh_shape, weight, body) for body in program.bodies(instruction)]
    longest = max(chains, key=lambda path: _length(path, weight), default=[])
    trips = 1 if instruction.trips is None else instruction.trips
    return [dataclasses.replace(collective, count=collective.count * trips) for collective in longest]


def _length(path: list[Collective], weight: Callable[[Collective], float]) -> float:
    return sum(collective.count * weight(collective) for collective in path)


def _holder(program: Program, name: str) -> Computation:
    """Return the computation that holds an instruction: names are unique within a program."""
    return next(holder for holder in program.computations.values() if name in holder.instructions)


def _operands(computation: Computation) -> dict[str, tuple[str, ...]]:
    """Return what each instruction reads; of a tuple that is taken apart only the part in question."""
    operands = {}
    for name, instruction in computation.instructions.items():
        read = instruction.operands
        if instruction.opcode == "get-tuple-element":
            whole = computation.instructions[read[0]]
            if whole.opcode == "tuple":
                read = (whole.operands[instruction.number],)
        operands[name] = tuple(operand for operand in read if operand in computation.instructions)
    return operands


def _reached(edges: Mapping[str, tuple[str, ...] | list[str]], start: str) -> set[str]:
    """Return what can be reached along edges in one step or more."""
    reached, open_ = set(), list(edges[start])
    while open_:
        name = open_.pop()
        if name not in reached:
            reached.add(name)
            open_.extend(edges[name])
    return reached


def _computes(program: Program, instruction: Instruction) -> bool:
    """Return whether an instruction does more than move values; a fusion if something in it does, masks apart."""
    if instruction.opcode in _MOVES or instruction.target in _MOVING_CALLS or instruction.chain is not None:
        return False
    if instruction.opcode not in ("fusion", "call"):
        return True
    inside = (i for name in instruction.calls for i in program.computations[name].instructions.values())
    return any(_computes(program, i) and not _integral(i) for i in inside)


def _integral(instruction: Instruction) -> bool:
    """Return whether a result holds nothing but integers and truth values: indices and masks."""
    return all(kind[0] in "su" or kind == "pred" for kind in instruction.types)


def _ends(program: Program, start: Instruction, other: Instruction) -> bool:
    if other.opcode == start.opcode.removesuffix("-start") + "-done":
        return start.name in other.operands
    if start.opcode != other.opcode or other.opcode != "fusion":
        return False
    chain = program.collective(start).chain
    inside = [i for name in other.calls for i in program.computations[name].instructions.values()]
    return any(i.target == "AsyncCollectiveDone" for i in inside) and any(i.chain == chain for i in inside)
