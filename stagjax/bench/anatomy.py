"""What a chip does in a compiled step: the time of its parts, its handoff, and all of it in order."""

import dataclasses
from typing import Any

from stagjax.bench import hlo, waiting
from stagjax.bench.collectives import collectives
from stagjax.bench.ledger import HOPS, Network

# Parts of a step by the scopes that the code names; whatever lies in none of them is "other".
COMPONENTS = (
    "embedding",
    "self_attention",
    "cross_attention",
    "mlp",
    "handoff",
    "combination",
    "logits",
    "sampling",
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """What a chip does for a while, in milliseconds from the beginning of a step: "collective" or a part of it."""

    part: str
    start: float
    end: float


def components_ms(program: hlo.Program, clock: float) -> dict[str, float]:
    """Return the compiler's milliseconds by part of the step."""
    totals = dict.fromkeys((*COMPONENTS, "other"), 0.0)
    for instruction, times in program.walk():
        totals[_component(instruction.op_name) or "other"] += 1e3 * times * (instruction.cycles or 0) / clock
    return {part: ms for part, ms in totals.items() if ms}


def _component(op_name: str) -> str | None:
    scopes = op_name.split("/")
    return next((scope for scope in reversed(scopes) if scope in COMPONENTS), None)


def handoff(program: hlo.Program, network: Network) -> dict[str, Any] | None:
    """Say of each handoff what waits for it, what it waits for, and what runs while it is under way."""
    permutes = [c for c in collectives(program, network.mesh.shape) if c.kind == "collective-permute"]
    permutes = [c for c in permutes if _component(c.op_name) == "handoff"]
    if not permutes:
        return None
    under_way = [waiting.between(program, c.instruction, network.mesh.shape) for c in permutes]
    clock = network.chip.clock
    return {
        "count": sum(c.count for c in permutes),
        "bytes": permutes[0].bytes,
        "hops": network.hops(permutes[0]),
        # One that runs more than once is in the loop of a prefill, whose next round waits for it.
        "awaited_in_the_step": any(c.count > 1 or waiting.waiting(program, c.instruction) for c in permutes),
        "needs_the_step": any(waiting.sources(program, c.instruction) for c in permutes),
        "overlapped_ms": 1e3 * min(u.cycles for u in under_way) / clock if clock else None,
        "overlapped_collectives": min(len(u.collectives) for u in under_way),
    }


def timeline(program: hlo.Program, network: Network, clock: float) -> tuple[Segment, ...]:
    """Return the step as the schedule runs it: the compiler's time, and collectives by their hops."""
    found = {collective.instruction: collective for collective in collectives(program, network.mesh.shape)}
    segments: list[Segment] = []
    now, part = 0.0, "other"
    for instruction, times in program.walk():
        part = _component(instruction.op_name) or part
        kind, lasts = part, 1e3 * times * (instruction.cycles or 0) / clock
        collective = found.get(instruction.name)
        if collective and not collective.asynchronous:
            kind, lasts = "collective", 1e-3 * times * network.latency_us(collective, HOPS)
        if not lasts:
            continue
        if segments and segments[-1].part == kind:
            segments[-1] = dataclasses.replace(segments[-1], end=now + lasts)
        else:
            segments.append(Segment(kind, now, now + lasts))
        now += lasts
    return tuple(segments)
