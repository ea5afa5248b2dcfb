"""Read the text of an optimised HLO module: computations, instructions, loops.

XLA's text is the only account of a compiled program that both the TPU and the CPU compiler give. It is scheduled: the
order of the lines is the order of execution. What its instructions mean: openxla.org/xla/operation_semantics;
`backend_config` is each compiler's own.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# The compiler marks what it cannot estimate with numbers near 2**63.
_ABSURD_CYCLES = 10**15
_BITS = {"pred": 8, "token": 0, "opaque": 0}

_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$")
_END = re.compile(r"\}(, execution_thread=.*)?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")
_NAME = re.compile(r"%([^\s,(){}]+)")
_PARENTHESIS = re.compile(r"[()]")
_ARRAY = re.compile(r"\b([a-z]+\d*)[a-z0-9]*\[([\d,<=]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_DIRECTION = re.compile(r"direction=([A-Z]+)")
_INDEX = re.compile(r"index=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CALLED = re.compile(
    r"(?:calls|condition|body|true_computation|false_computation)=%?([^\s,]+)|branch_computations=\{([^}]*)\}"
)
_APPLIED = re.compile(r"to_apply=%?([^\s,]+)")
_GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)="
    r"(\{[\d,{} ]*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
    r"|mesh\[[^\]:]*\](?:, device_ids=\(\[[\d,]+\]T\([\d,]+\)\))? \{[^}:]*\})(?=,|$| )"
)
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_DEVICE_IDS = re.compile(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)")

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique within the program.
      opcode: as HLO names it, e.g. "fusion", "all-reduce", "collective-permute-start".
      shape: of the result, as text.
      operands: names of the instructions that it reads, all in the same computation.
      operand_bytes: their size, without the padding of tiles.
      calls: computations that it runs: the body of a fusion or call, (condition, body) of a loop, each branch.
      cycles: the compiler's estimate; None for what carries none (collectives, Pallas kernels, asynchronous copies).
      groups: chips that talk to each other, or (source, target) pairs; () stands for all chips, None for no collective.
      op_name: what JAX calls it, with the scopes around it, e.g. "jit(step)/shard_map/attention/psum".
      channel: of a collective.
      chain: of the parts of one asynchronous collective that the TPU compiler has spread over several fusions.
      target: what a custom call calls.
      direction: of a comparison, e.g. "LT".
      number: value of an integer constant, or index of a get-tuple-element.
      trips: how often a loop runs its body; None where the program does not tell.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...] = ()
    operand_bytes: int = 0
    calls: tuple[str, ...] = ()
    cycles: int | None = None
    groups: Groups | None = None
    op_name: str = ""
    channel: int | None = None
    chain: str | None = None
    target: str | None = None
    direction: str | None = None
    number: int | None = None
    trips: int | None = None

    @property
    def kind(self) -> str | None:
        """The kind of collective that it runs or starts, else None."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @functools.cached_property
    def bytes(self) -> int:
        """Size of the result, without the padding of tiles."""
        return shape_bytes(self.shape)

    @property
    def types(self) -> list[str]:
        """The types of the arrays in the result, e.g. ["bf16", "s32"]."""
        return [kind for kind, _ in _ARRAY.findall(self.shape)]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name in the order in which they run, and the one whose result is the computation's."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction


def read(text: str) -> tuple[dict[str, Computation], str, int]:
    """Return the computations by name, the name of the entry, and the number of chips.

    Raises:
      ValueError: the text is no HLO module, or names groups of chips in a notation that is not known.
    """
    header = text.partition("\n")[0]
    chips = math.prod(int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header))
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        if _END.fullmatch(line):
            computations[name] = _computation(name, lines)
            name = None
        elif name is None and (start := _COMPUTATION.match(line)):
            name, lines = start[2], []
            entry = name if start[1] else entry
        elif name is not None and (instruction := _INSTRUCTION.match(line)):
            lines.append((instruction, line))
        elif name is not None and lines:
            # A Pallas kernel's metadata goes over several lines.
            lines[-1] = (lines[-1][0], lines[-1][1] + " " + line)
    if entry not in computations:
        raise ValueError(f"no HLO module with an entry computation: {header[:80]!r}")
    counted = {name: _with_trips(computation, computations) for name, computation in computations.items()}
    return counted, entry, chips


def shape_bytes(shape: str) -> int:
    """Return the size of a shape, tuples added up, without the padding of tiles: "(bf16[8,8]{1,0}, s32[])" has 132."""
    bits = 0
    for kind, sizes in _ARRAY.findall(shape):
        width = _BITS.get(kind)
        if width is None:
            width = int(re.search(r"\d+", kind)[0])
        bits += width * math.prod(int(n.lstrip("<=")) for n in sizes.split(",") if n)
    return bits // 8


def read_groups(text: str) -> Groups:
    """Read one of the three notations of groups of chips.

    `{{0,1},{2,3}}` lists them. `[4,2]<=[2,4]T(1,0)` is 0..7 as 2x4, transposed, in rows of 2. `mesh['a'=2,'b'=4] {'b'}`
    is 0..7 as a mesh, those along its axis b; `, device_ids=([4,2]T(1,0))` before the braces fills the mesh with 0..7
    as 4x2, transposed.
    """
    if text.startswith("mesh"):
        sizes, _, along = text.partition("]")
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)]
        names = [name for name, _ in axes]
        inner = [names.index(name) for name in re.findall(r"'([^']+)'", along)]
        outer = [i for i in range(len(axes)) if i not in inner]
        chips = np.arange(math.prod(size for _, size in axes))
        if ids := _DEVICE_IDS.search(along):
            source, order = ([int(n) for n in part.split(",")] for part in ids.groups())
            chips = chips.reshape(source).transpose(order)
        chips = chips.reshape([size for _, size in axes])
        members = math.prod(axes[i][1] for i in inner)
        return tuple(tuple(row) for row in chips.transpose(outer + inner).reshape(-1, members).tolist())
    iota = _IOTA.fullmatch(text)
    if iota is None:
        groups = re.findall(r"\{([\d, ]+)\}", text)
        return tuple(tuple(int(n) for n in group.split(",")) for group in groups)
    rows, source, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
    chips = np.arange(math.prod(source)).reshape(source)
    chips = chips.transpose(order) if order else chips
    return tuple(tuple(row) for row in chips.reshape(-1, rows[-1]).tolist())


def _computation(name: str, lines: list[tuple[re.Match, str]]) -> Computation:
    instructions, root = {}, None
    for match, line in lines:
        instruction = _instruction(match[2], line[match.end() :])
        size = sum(instructions[operand].bytes for operand in instruction.operands if operand in instructions)
        instructions[match[2]] = dataclasses.replace(instruction, operand_bytes=size)
        root = match[2] if match[1] or root is None else root
    return Computation(name, instructions, instructions[root])


def _instruction(name: str, text: str) -> Instruction:
    """Read `shape opcode(operands), attributes`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    opcode, inside, attributes = text[end:opening].strip(), text[opening + 1 : closing - 1], text[closing:]
    called = [name for match in _CALLED.findall(attributes) for name in re.split(r",\s*", match[0] or match[1])]
    if opcode == "call":
        called += _APPLIED.findall(attributes)
    cycles, trips, groups = (_first(pattern, attributes) for pattern in (_CYCLES, _TRIPS, _GROUPS))
    number = inside if opcode == "constant" else _first(_INDEX, attributes) if opcode == "get-tuple-element" else None
    instruction = Instruction(
        name=name,
        opcode=opcode,
        shape=text[:end],
        operands=() if opcode == "constant" else tuple(_NAME.findall(inside)),
        calls=tuple(called.strip("%") for called in called),
        cycles=int(cycles) if cycles and int(cycles) < _ABSURD_CYCLES else None,
        op_name=(_first(_OP_NAME, attributes) or "").replace("\\'", "'"),
        channel=int(_first(_CHANNEL, attributes) or 0) or None,
        chain=_first(_CHAIN, attributes),
        target=_first(_TARGET, attributes),
        direction=_first(_DIRECTION, attributes),
        number=int(number) if number and re.fullmatch(r"-?\d+", number) else None,
        trips=int(trips) if trips else None,
    )
    if instruction.kind is None:
        return instruction
    if groups is None:
        raise ValueError(f"{name}: no groups of chips that could be read: {attributes[:120]}")
    return dataclasses.replace(instruction, groups=read_groups(groups))


def _with_trips(computation: Computation, computations: Mapping[str, Computation]) -> Computation:
    """Fill in the trip counts that the compiler does not state: libtpu states none, not even of `fori_loop(0, 5)`."""
    instructions = dict(computation.instructions)
    for name, loop in instructions.items():
        if loop.opcode == "while" and loop.trips is None:
            condition, body = (computations[called] for called in loop.calls)
            trips = _trips(instructions, loop, condition, body)
            instructions[name] = dataclasses.replace(loop, trips=trips)
    return dataclasses.replace(computation, instructions=instructions, root=instructions[computation.root.name])


def _trips(
    outside: Mapping[str, Instruction], loop: Instruction, condition: Computation, body: Computation
) -> int | None:
    """Return the trips of `while counter < limit: counter += step`, all of them constants; None for any other loop."""
    test, state, after = condition.root, _origin(outside, loop.operands[0]), body.root
    if (test.opcode, test.direction, state.opcode, after.opcode) != ("compare", "LT", "tuple", "tuple"):
        return None

    def constant(instructions: Mapping[str, Instruction], name: str) -> int | None:
        index = _state_index(instructions, name)
        if index is not None:  # a constant may also be carried through the loop
            unchanged = _state_index(body.instructions, after.operands[index]) == index
            return _constant(outside, state.operands[index]) if unchanged else None
        return _constant(instructions, name)

    counter = _state_index(condition.instructions, test.operands[0])
    limit = constant(condition.instructions, test.operands[1])
    if counter is None or limit is None:
        return None
    start = _constant(outside, state.operands[counter])
    update = _origin(body.instructions, after.operands[counter])
    if start is None or update.opcode != "add":
        return None
    steps = [constant(body.instructions, n) for n in update.operands if _state_index(body.instructions, n) != counter]
    if len(steps) != 1 or not steps[0] or steps[0] < 0:
        return None
    return max(0, -(-(limit - start) // steps[0]))


def _origin(instructions: Mapping[str, Instruction], name: str) -> Instruction:
    """Return where a value comes from, through what only moves it."""
    instruction = instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = instructions[instruction.operands[0]]
    return instruction


def _constant(instructions: Mapping[str, Instruction], name: str) -> int | None:
    origin = _origin(instructions, name)
    return origin.number if origin.opcode == "constant" else None


def _state_index(instructions: Mapping[str, Instruction], name: str) -> int | None:
    """Return which part of a loop's state a value is, None for what is no part of it."""
    origin = _origin(instructions, name)
    if origin.opcode != "get-tuple-element":
        return None
    return origin.number if instructions[origin.operands[0]].opcode == "parameter" else None


def _closing(text: str, opening: int) -> int:
    """Return the index after the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in _PARENTHESIS.finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"a parenthesis is not closed: {text[opening : opening + 80]}")


def _first(pattern: re.Pattern, text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None
