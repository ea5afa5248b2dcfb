"""Chips: what their makers publish of them, found by a part of a device's kind."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, by its maker's data sheet.

    Attributes:
      kind: part of `jax.Device.device_kind`, without regard to case.
      flops: dense bfloat16 FLOP/s.
      hbm_bytes: memory.
      hbm_bandwidth: bytes per second.
      clock: cycles per second of the matrix units: `flops` over what they do in a cycle; None where not known.
      link_bandwidth: bytes per second of one inter-chip link in one direction; None where there are none.
      wraps: a torus dimension has a wrap-around link if its size is a multiple of this; None for never.
    """

    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    clock: float | None = None
    link_bandwidth: float | None = None
    wraps: int | None = None


# A kind that is part of another's name comes after it.
CHIPS = (
    Chip("TPU v4", 275e12, 32e9, 1228e9, clock=1.05e9, link_bandwidth=50e9, wraps=4),
    Chip("TPU v5 lite", 197e12, 16e9, 819e9, clock=1.5e9, link_bandwidth=50e9, wraps=16),
    Chip("TPU v5e", 197e12, 16e9, 819e9, clock=1.5e9, link_bandwidth=50e9, wraps=16),
    Chip("TPU v5p", 459e12, 95e9, 2765e9, clock=1.75e9, link_bandwidth=100e9, wraps=4),
    Chip("TPU v5", 459e12, 95e9, 2765e9, clock=1.75e9, link_bandwidth=100e9, wraps=4),
    Chip("TPU v6 lite", 918e12, 32e9, 1640e9, clock=1.75e9, link_bandwidth=112e9, wraps=16),
    Chip("TPU v6e", 918e12, 32e9, 1640e9, clock=1.75e9, link_bandwidth=112e9, wraps=16),
    Chip("TPU7x", 2307e12, 192e9, 7380e9),
    Chip("A100", 312e12, 80e9, 2039e9),
    Chip("H100 PCIe", 756e12, 80e9, 2000e9),
    Chip("H100", 989e12, 80e9, 3350e9),
    Chip("H200", 989e12, 141e9, 4800e9),
)


def chip_of(device: Any) -> Chip | None:
    """Return the chip of a `jax.Device` (or anything with a `device_kind`), None where it is not known (a CPU)."""
    kind = device.device_kind.lower()
    return next((chip for chip in CHIPS if chip.kind.lower() in kind), None)
