"""Where a decode step's time goes: what it takes with a part, minus what it takes without.

Parts are not independent: they share caches and memory, and wait for each other. So each is left out twice: of the
whole step, and of a step that has hardly anything else, and its time is the mean of the two differences. Where parts
interact in pairs only, these means add up to the whole exactly (they are then the parts' Shapley values); what is
missing is the remainder. All programs are compiled and measured, in turns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from stagjax.bench.timing import Timing
from stagjax.decoding.placement import LEFT_OUT, Placement

LeftOut = frozenset[str]


class Part(NamedTuple):
    """A part, by what is left out of the programs that have it and of those that do not.

    Attributes:
      name: in reports.
      of_whole: left out (with it, without it), of a step that has everything else.
      of_nothing: the same, of a step that has hardly anything else.
    """

    name: str
    of_whole: tuple[LeftOut, LeftOut]
    of_nothing: tuple[LeftOut, LeftOut]


WHOLE: LeftOut = frozenset()
SILENT: LeftOut = frozenset({"collectives"})
EVERYTHING: LeftOut = frozenset(LEFT_OUT) - SILENT
HOST, REST = "host", "embedding, norms, loop"


def parts_of(placement: Placement) -> list[Part]:
    """Return the parts that a step has there."""

    def part(name: str, own: str, needs: LeftOut = WHOLE) -> Part:
        """Leave out `own`; `needs` must be there for it to have an effect."""
        return Part(name, (WHOLE, frozenset({own})), (EVERYTHING - needs - {own}, EVERYTHING - needs))

    parts = [part("self-attention", "self_attention")]
    if placement.reads_memory:
        # Without cross-attention nothing reads what is handed over: compared are steps that hand nothing over.
        kept = frozenset({"handoff"})
        alone = EVERYTHING - {"cross_attention"}, EVERYTHING
        parts.append(Part("cross-attention", (kept, kept | {"cross_attention"}), alone))
    parts.append(part("MLP", "mlp"))
    if placement.reads_memory and placement.slices > 1:
        parts.append(part("handoff", "handoff", needs=frozenset({"cross_attention"})))
    return [*parts, part("combination and logits", "logits"), part("sampling", "sampling")]


def programs_of(placement: Placement) -> dict[LeftOut, Placement]:
    """Return the programs that must be measured: by what is left out, the placement that leaves it out."""
    wanted = [WHOLE, EVERYTHING]
    for part in parts_of(placement):
        wanted += [*part.of_whole, *part.of_nothing]
    if placement.slices * placement.tensor > 1:
        wanted.append(SILENT)
    return {left: dataclasses.replace(placement, without=left) for left in wanted}


@dataclasses.dataclass(frozen=True)
class Split:
    """A step by its parts, milliseconds a token.

    Attributes:
      whole: the step as it decodes, with the host's part.
      parts: name to time, in order; with `HOST` and `REST`, what is left of a step of which everything is left out.
      collectives: what the step saves without any message between devices; part of the other parts, not of the sum.
        None on one device.
    """

    whole: Timing
    parts: dict[str, Timing]
    collectives: Timing | None

    @property
    def sum_ms(self) -> float:
        """All parts together."""
        return sum(part.median_ms for part in self.parts.values())

    @property
    def remainder_ms(self) -> float:
        """What the parts do not account for; negative where they account for more than there is."""
        return self.whole.median_ms - self.sum_ms

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {
            "whole": self.whole.to_dict(),
            "parts": [{"part": name, **timing.to_dict()} for name, timing in self.parts.items()],
            "sum_ms": self.sum_ms,
            "remainder_ms": self.remainder_ms,
            "share_explained": self.sum_ms / self.whole.median_ms,
            "collectives": self.collectives and self.collectives.to_dict(),
        }


def split(placement: Placement, times: Callable[[LeftOut], Timing], one: Timing, tokens: int) -> Split:
    """Make a split of measured programs.

    Args:
      placement: what was measured.
      times: milliseconds of a call of `tokens` tokens of each of `programs_of`.
      one: milliseconds of a call of one token of the whole program.
      tokens: see above; at least 2.
    """
    per_token = lambda left: times(left).scaled(1 / tokens)
    saved = lambda pair: per_token(pair[0]).minus(per_token(pair[1]))
    # A call of n tokens takes h + n d, one of a single token h + d.
    host = one.scaled(tokens).minus(times(WHOLE)).scaled(1 / (tokens - 1) / tokens)
    parts = {part.name: saved(part.of_whole).mean(saved(part.of_nothing)) for part in parts_of(placement)}
    parts[HOST] = host
    parts[REST] = per_token(EVERYTHING).minus(host)
    together = placement.slices * placement.tensor > 1
    return Split(per_token(WHOLE), parts, saved((WHOLE, SILENT)) if together else None)
