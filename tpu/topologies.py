"""TPU slices: what Google Cloud calls them, and how many hosts and chips they have.

Names are those of `stagjax plan --topology`: FAMILY:LAYOUT, e.g. v5e:16x16. Sources: Cloud TPU's pages on v4, v5e, v5p,
v6e and TPU7x, GKE's page on planning TPUs, and the tables of accelerators in xpk and marin.
"""

import dataclasses
import math
import re

from stagjax.errors import UserError, unknown

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Family:
    """A generation of TPUs.

    Attributes:
      accelerator: what comes before the number in an accelerator type.
      cores_per_chip: the number counts TensorCores: 2 for v4, v5p and TPU7x, 1 for v5e and v6e.
      runtime: software of a TPU VM; empty where there are none and GKE is the only way.
      gke_accelerator: value of the node label cloud.google.com/gke-tpu-accelerator.
      machine: of a GKE node, without its number of chips.
      largest: chips of a whole pod.
      dimensions: of its torus.
      wide_host: whether 8 chips are one TPU VM; else a host never has more than 4.
      devices_per_chip: as which JAX sees a chip.
      by_policy: whether GKE takes the layout of several hosts from a workload policy, not from --tpu-topology.
    """

    accelerator: str
    cores_per_chip: int
    runtime: str
    gke_accelerator: str
    machine: str
    largest: int
    dimensions: int
    wide_host: bool
    devices_per_chip: int = 1
    by_policy: bool = False


FAMILIES = {
    "v4": Family("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu", 4096, 3, False),
    "v5e": Family("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu", 256, 2, True),
    "v5p": Family("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu", 8960, 3, False),
    "v6e": Family("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard", 256, 2, True),
    "tpu7x": Family("tpu7x", 2, "", "tpu7x", "tpu7x-standard", 9216, 3, False, devices_per_chip=2, by_policy=True),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a pod.

    Attributes:
      name: as the user wrote it, e.g. "v5e:16x16".
      family: its generation.
      layout: chips along each dimension, e.g. "16x16".
    """

    name: str
    family: Family
    layout: str

    @property
    def chips(self) -> int:
        """Return how many chips it has."""
        return math.prod(map(int, self.layout.split("x")))

    @property
    def devices(self) -> int:
        """Return how many devices JAX sees."""
        return self.chips * self.family.devices_per_chip

    @property
    def is_named_by_type(self) -> bool:
        """Return whether its accelerator type means this layout: v5p-512 is 4x8x8, the most compact, and not 4x4x16."""
        return self.family.dimensions == 2 or self.layout == min(_solid(self.chips), key=_extent)

    @property
    def accelerator_type(self) -> str:
        """Return its name in the TPU API, e.g. "v5litepod-256" or "v5p-128" (64 chips of 2 TensorCores)."""
        return f"{self.family.accelerator}-{self.chips * self.family.cores_per_chip}"

    @property
    def vm_hosts(self) -> int:
        """Return how many TPU VMs it is."""
        whole = 8 if self.family.wide_host else 4
        return 1 if self.chips <= whole else self.chips // 4

    @property
    def gke_chips_per_host(self) -> int:
        """Return how many chips a GKE node has: 4 wherever there are several nodes."""
        return min(self.chips, 4)

    @property
    def gke_hosts(self) -> int:
        """Return how many GKE nodes it is."""
        return self.chips // self.gke_chips_per_host

    @property
    def gke_machine(self) -> str:
        """Return the machine type of its GKE nodes."""
        return f"{self.family.machine}-{self.gke_chips_per_host}t"


def find_slice(name: str | None) -> Slice:
    """Return the slice of a name such as "v5e:16x16".

    Raises:
      UserError: no name, or no such slice.
    """
    if not name:
        raise UserError("--topology is missing; name the slice, e.g. --topology=v5e:16x16 or v5p:4x4x8")
    prefix, _, layout = name.partition(":")
    if prefix not in FAMILIES:
        raise unknown("TPU family in --topology", prefix, FAMILIES)
    family = FAMILIES[prefix]
    if family.dimensions == 2:
        if layout not in _FLAT:
            raise UserError(f"--topology={name}: {prefix} has no slice {layout!r}; use one of {', '.join(_FLAT)}")
    elif problem := _solid_problem(family, layout):
        raise UserError(f"--topology={name}: {problem}; use e.g. {prefix}:2x2x4, {prefix}:4x4x8 or {prefix}:8x8x16")
    return Slice(name, family, layout)


def _solid_problem(family: Family, layout: str) -> str | None:
    """Return what is wrong with the layout of a three-dimensional slice, None if it exists."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", layout):
        return f"{layout!r} is not three sizes"
    sides = [int(side) for side in layout.split("x")]
    if sides != sorted(sides) and sides != [2, 2, 1]:
        return "sizes go from the smallest to the largest (a single host is 2x2x1)"
    if sides == [1, 1, 1] and family.by_policy:
        return None  # the one family that has machines of a single chip
    if sides not in ([2, 2, 1], [2, 2, 2], [2, 2, 4], [2, 4, 4]) and any(side % 4 for side in sides):
        return "from 64 chips on every size is a multiple of 4"
    if math.prod(sides) > family.largest:
        return f"a pod has {family.largest} chips"
    return None


def _solid(chips: int) -> list[str]:
    """Return the layouts that a three-dimensional slice of so many chips may have."""
    if chips < 64:
        return [{1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}[chips]]
    sides = [side for side in range(4, chips // 16 + 1, 4) if chips % side == 0]
    return [
        f"{a}x{b}x{chips // (a * b)}"
        for a in sides
        for b in sides
        if a <= b <= chips // (a * b) and chips % (a * b) == 0 and chips // (a * b) % 4 == 0
    ]


def _extent(layout: str) -> int:
    return sum(map(int, layout.split("x")))


def table() -> list[tuple[str, str, int, int, int, str]]:
    """Return (name, accelerator type, chips, TPU VMs, GKE nodes, GKE machine) of the usual slices."""
    solid = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
    rows = []
    for prefix, family in FAMILIES.items():
        for layout in _FLAT if family.dimensions == 2 else solid:
            s = find_slice(f"{prefix}:{layout}")
            vms = s.vm_hosts if family.runtime else 0
            rows.append((s.name, s.accelerator_type, s.chips, vms, s.gke_hosts, s.gke_machine))
    return rows
