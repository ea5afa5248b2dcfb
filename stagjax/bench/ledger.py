"""From collectives and bytes to a step's latency, with named constants.

A ledger is an estimate: what computing takes, by the compiler or by the memory that must be read, plus what the
collectives take that the step waits for. Nothing in it was measured here; `Calibration`'s constants say where they come
from, and a run on real chips can replace them.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from stagjax.bench import waiting
from stagjax.bench.collectives import Collective, collectives
from stagjax.bench.hlo import Program
from stagjax.errors import UserError
from stagjax.hardware import Chip, chip_of
from stagjax.mesh import coordinates


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a collective costs: a constant, plus its way through the network, plus bytes over a link's bandwidth.

    Attributes:
      name: of the calibration.
      hop_us: one inter-chip link, in microseconds, on the way of a collective among the chips of a group.
      reduce_ways: how often an all-reduce crosses the group's diameter: there and back.
      other_ways: how often an all-gather, a reduce-scatter or an all-to-all does.
      permute_hop_us: one inter-chip link on the way of a permute, which goes straight from source to target.
      small_us: constant of a collective in groups of fewer than `large_chips`; permutes have none.
      large_us: constant of a collective in groups of `large_chips` or more.
      large_chips: see above.
      links: links that a chip sends through at once. 1 is a ring in one direction.
      kinds: `Chip.kind` of the chips that the constants were taken from, and hold for; None for any chip.
    """

    name: str
    hop_us: float = 1.0
    reduce_ways: float = 2.0
    other_ways: float = 1.0
    permute_hop_us: float = 1.0
    small_us: float = 0.0
    large_us: float = 0.0
    large_chips: int = 16
    links: float = 1.0
    kinds: tuple[str, ...] | None = None

    def holds_for(self, chip: Chip) -> bool:
        """Return whether the constants say anything of a chip."""
        return self.kinds is None or chip.kind in self.kinds


HOPS = Calibration("hops")
"""Arithmetic for any chip: an all-reduce crosses the slice there and back at 1 us a link, 12 us on 4x4 chips."""

PUBLISHED = Calibration("published", hop_us=0.0, small_us=7.0, large_us=6.0, kinds=("TPU v5 lite", "TPU v5e"))
"""From published decode steps of Llama 70B in int8 on v5e-16, which make 160 all-reduces one after the other.

On 16 chips a step takes 6.3 ms, of which reading 70 GB / 16 at 819 GB/s is 5.3 ms (85%): 1 ms / 160 = 6 us each. On 8
chips 11.8 ms and 10.7 ms: 7 us each. These contain the bytes of those all-reduces (16 KB a row), which are here counted
again, and say nothing of permutes, which cost their hops.
"""


@dataclasses.dataclass(frozen=True)
class Network:
    """Where the chips of a mesh sit.

    Attributes:
      mesh: the chips on which the program is to run; for its hops, not for compiling (see `topology.stand_in`).
      sides: chips along each dimension of the whole topology: some links wrap around it.
      chip: what the maker publishes.
    """

    mesh: Mesh
    sides: tuple[int, ...]
    chip: Chip

    @classmethod
    def of(cls, mesh: Mesh, devices: Sequence[jax.Device]) -> "Network":
        """Return the network of a mesh among all devices of its topology.

        Raises:
          UserError: devices whose coordinates or links are not known (CPUs, GPUs).
        """
        chip = chip_of(devices[0])
        if chip is None or chip.link_bandwidth is None or coordinates(devices[0]) is None:
            raise UserError(
                f"latency cannot be estimated for {devices[0].device_kind!r}, whose links are not known; "
                "name a TPU topology, e.g. --topology=v5e:4x4"
            )
        places = [coordinates(device)[1:] for device in devices]
        return cls(mesh, tuple(max(axis) - min(axis) + 1 for axis in zip(*places, strict=True)), chip)

    def distance(self, first: int, second: int) -> int:
        """Return the links between two chips, given as positions in the flattened mesh; those that wrap included."""
        hops = 0
        places = (coordinates(self.mesh.devices.flat[position])[1:] for position in (first, second))
        for a, b, side in zip(*places, self.sides, strict=True):
            apart = abs(a - b)
            wrapped = self.chip.wraps is not None and side % self.chip.wraps == 0
            hops += min(apart, side - apart) if wrapped else apart
        return hops

    def hops(self, collective: Collective) -> int:
        """Return the diameter of the widest group; of a permute the longest way from a source to its target."""
        return max(
            (self.distance(a, b) for group in collective.groups for a, b in itertools.combinations(group, 2)), default=0
        )

    def latency_us(self, collective: Collective, calibration: Calibration) -> float:
        """Return the microseconds that one run takes by itself.

        The bytes go around a ring: an all-reduce of b bytes among n chips sends 2 b (n-1)/n through each chip's link, a
        reduce-scatter or an all-to-all half of it, an all-gather of parts of b bytes b (n-1), a permute b.
        """
        n = max(len(set(group)) for group in collective.groups)
        hops, sent = self.hops(collective), collective.bytes
        if collective.kind == "collective-permute":
            fixed = calibration.permute_hop_us * hops
        else:
            ways = calibration.reduce_ways if collective.kind == "all-reduce" else calibration.other_ways
            constant = calibration.large_us if n >= calibration.large_chips else calibration.small_us
            fixed = constant + calibration.hop_us * ways * hops
            sent *= {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1}.get(collective.kind, (n - 1) / n)
        return fixed + 1e6 * sent / (self.chip.link_bandwidth * calibration.links)


@dataclasses.dataclass(frozen=True)
class Line:
    """Equal collectives of a ledger.

    Attributes:
      kind: HLO's name.
      axis: mesh axes along which they go.
      primitive: what JAX asked for.
      count: how often they run in a step.
      bytes: that each chip gives to one.
      chips: in the largest group.
      hops: diameter of their groups, or the way of a permute.
      latency_us: of one, by itself.
      hidden_us: of that, at most what the schedule runs between its start and its end.
    """

    kind: str
    axis: str
    primitive: str
    count: int
    bytes: int
    chips: int
    hops: int
    latency_us: float
    hidden_us: float

    @property
    def ms(self) -> float:
        """What they add to the step."""
        return 1e-3 * self.count * (self.latency_us - self.hidden_us)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """One estimate of a step.

    Attributes:
      compute: "compiler" (its cycles over the chip's clock, which count no wait for memory that is read ahead), or a
        floor: "hbm" (the bytes that must be read over the memory's bandwidth) or "flops" (the model's FLOPs over the
        chip's peak).
      calibration: name of the calibration of the collectives.
      compute_ms: milliseconds of it.
      lines: the collectives, in the order of the first of each.
    """

    compute: str
    calibration: str
    compute_ms: float
    lines: tuple[Line, ...]

    @property
    def collectives_ms(self) -> float:
        """What the step waits for collectives."""
        return sum(line.ms for line in self.lines)

    @property
    def step_ms(self) -> float:
        """The whole step."""
        return self.compute_ms + self.collectives_ms

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return dataclasses.asdict(self) | {
            "lines": [dataclasses.asdict(line) | {"ms": line.ms} for line in self.lines],
            "collectives_ms": self.collectives_ms,
            "step_ms": self.step_ms,
        }


def ledgers(
    program: Program,
    network: Network,
    floors_ms: Mapping[str, float],
    calibrations: Iterable[Calibration] = (HOPS, PUBLISHED),
    kernels_ms: float = 0.0,
) -> list[Ledger]:
    """Return the estimates of a step: by the compiler and by each floor, each under every calibration that holds.

    Args:
      program: compiled for a mesh of the shape of `network.mesh`.
      network: where its chips sit.
      floors_ms: what a step takes at least, by what bounds it.
      calibrations: of the collectives.
      kernels_ms: of Pallas kernels, which the compiler's cycles leave out.
    """
    computes = dict(floors_ms)
    if network.chip.clock is not None:
        computes = {"compiler": 1e3 * program.cycles().total / network.chip.clock + kernels_ms} | computes
    return [
        Ledger(compute, calibration.name, ms, lines)
        for calibration in calibrations
        if calibration.holds_for(network.chip)
        for lines in [waits(program, network, calibration)]
        for compute, ms in computes.items()
    ]


def waits(program: Program, network: Network, calibration: Calibration) -> tuple[Line, ...]:
    """Return the collectives of a step with what each adds to it.

    A synchronous collective stops the chip, so that all of them count, on the longest chain of dependencies or not. Of
    an asynchronous one counts what is left after the work that the schedule has put between its start and its end: a
    handoff for which nothing waits is hidden, one whose end follows its start (lag 0) is not.
    """
    counts = collections.Counter()
    shape = network.mesh.shape
    for collective in collectives(program, shape):
        latency = network.latency_us(collective, calibration)
        hidden = 0.0
        if collective.asynchronous:
            under_way = waiting.between(program, collective.instruction, shape)
            hidden = 1e3 * collectives_ms(
                (c for c in under_way.collectives if not c.asynchronous), network, calibration
            )
            hidden += 1e6 * under_way.cycles / network.chip.clock if network.chip.clock else 0.0
        kind, axis, primitive = collective.kind, collective.axis, collective.primitive
        hops = network.hops(collective)
        chips = max(len(set(group)) for group in collective.groups)
        line = Line(kind, axis, primitive, 0, collective.bytes, chips, hops, latency, min(latency, hidden))
        counts[line] += collective.count
    return tuple(dataclasses.replace(line, count=count) for line, count in counts.items())


def collectives_ms(chain: Iterable[Collective], network: Network, calibration: Calibration) -> float:
    """Return the milliseconds of collectives that run one after the other, e.g. those of `waiting.chain`."""
    return 1e-3 * sum(collective.count * network.latency_us(collective, calibration) for collective in chain)
