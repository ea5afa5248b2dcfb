"""What a compiled program holds: what runs how often, and the compiler's cycles."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from stagjax.bench.hlo_text import Computation, Instruction, read


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The compiler's cycles of a program, trip counts multiplied.

    Attributes:
      total: of everything that carries an estimate.
      by_opcode: fusions are counted as the costliest thing in them, e.g. "fusion(convolution)".
      by_component: for every component of `op_name` ("attention", "dot_general") the cycles of all that lies in it; one
        instruction counts in several.
      kernels: custom calls of the step that carry no estimate (Pallas).
      unknown_loops: loops of unknown trip count, counted once.
    """

    total: int
    by_opcode: dict[str, int]
    by_component: dict[str, int]
    kernels: int
    unknown_loops: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, as `parse` reads it."""

    computations: Mapping[str, Computation]
    entry: Computation
    chips: int

    def walk(
        self, instructions: Iterable[Instruction] | None = None, times: int = 1
    ) -> Iterator[tuple[Instruction, int]]:
        """Yield every instruction that runs, with how often, in order; not what lies inside fusions.

        Loops of unknown trip count run once, and of a conditional every branch: no collective is overlooked.

        Args:
          instructions: where to start; None for the whole program.
          times: how often these run.
        """
        for instruction in self.entry.instructions.values() if instructions is None else instructions:
            yield instruction, times
            trips = 1 if instruction.trips is None else instruction.trips
            for inner in self.bodies(instruction):
                yield from self.walk(inner.instructions.values(), times * trips)

    def bodies(self, instruction: Instruction) -> list[Computation]:
        """Return the computations that a call, a loop or a conditional runs, each of which is a schedule of its own."""
        if instruction.opcode not in ("call", "while", "conditional"):
            return []
        return [self.computations[name] for name in instruction.calls]

    def collective(self, instruction: Instruction) -> Instruction | None:
        """Return the collective that an instruction runs or starts, itself or within a fusion, else None.

        The TPU compiler spreads an asynchronous collective over fusions that it overlaps with (a start, continuations
        with the same `chain`, an end): only the start counts.
        """
        if instruction.kind:
            return instruction
        if instruction.opcode not in ("fusion", "async-start"):
            return None
        inside = [i for name in instruction.calls for i in self.computations[name].instructions.values()]
        starts = any(i.target == "AsyncCollectiveStart" for i in inside)
        return next((i for i in inside if i.kind and (starts or i.chain is None)), None)

    def cycles(self) -> Cycles:
        """Add up the compiler's estimates."""
        total, kernels, unknown = 0, 0, []
        opcodes, components = collections.Counter(), collections.Counter()
        for instruction, times in self.walk():
            if instruction.opcode == "while" and instruction.trips is None:
                unknown.append(instruction.name)
            if instruction.target == "tpu_custom_call":
                kernels += times
            cycles = times * (instruction.cycles or 0)
            if cycles:
                total += cycles
                opcodes[self._described(instruction)] += cycles
                for component in set(instruction.op_name.split("/")):
                    components[component] += cycles
        return Cycles(total, dict(opcodes.most_common()), dict(components.most_common()), kernels, tuple(unknown))

    def _described(self, instruction: Instruction) -> str:
        if instruction.opcode != "fusion":
            return instruction.opcode
        inside = {i.opcode for name in instruction.calls for i in self.computations[name].instructions.values()}
        heavy = ("convolution", "dot", "custom-call", "sort", "scatter", "gather", "fusion", "reduce")
        found = next((opcode for opcode in heavy if opcode in inside), None)
        return f"fusion({found})" if found else "fusion"


def parse(text: str) -> Program:
    """Read the text of an optimised HLO module, `compiled.as_text()`.

    Raises:
      ValueError: the text is no HLO module, or names groups of chips in a notation that is not known.
    """
    computations, entry, chips = read(text)
    return Program(computations, computations[entry], chips)
