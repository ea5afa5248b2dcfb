"""Chips: what their makers publish of them, found by a part of a device's kind."""

import dataclasses
from typing import Any

_GB, _GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, by its maker's data sheet; to JAX it may be several devices.

    Attributes:
      kind: part of `jax.Device.device_kind`, without regard to case.
      flops: dense bfloat16 FLOP/s of the chip.
      hbm_bandwidth: bytes per second of the chip.
      memory: bytes that programs can use of one device: of TPUs what libtpu (0.0.52) names where a program needs
        more; of GPUs the data sheet.
      devices: that JAX sees for each chip. A v4 or v5p chip has two cores and is one device; those of TPU7x are two.
      clock: cycles per second of the matrix units: `flops` over what they do in a cycle; None where not known.
      link_bandwidth: bytes per second of one inter-chip link in one direction; None where there are none.
      wraps: a torus dimension has a wrap-around link if its size is a multiple of this; None for never.
    """

    kind: str
    flops: float
    hbm_bandwidth: float
    memory: float
    devices: int = 1
    clock: float | None = None
    link_bandwidth: float | None = None
    wraps: int | None = None

    @property
    def device_flops(self) -> float:
        """Dense bfloat16 FLOP/s of one device."""
        return self.flops / self.devices

    @property
    def device_bandwidth(self) -> float:
        """Bytes per second that one device reads from its memory."""
        return self.hbm_bandwidth / self.devices


# A kind that is part of another's name comes after it. Sources: Cloud TPU's pages on v4, v5e, v5p, v6e and TPU7x, whose
# link is a sixth of half its bidirectional 1200 GB/s.
CHIPS = (
    Chip("TPU v4", 275e12, 1228e9, 30.75 * _GIB, clock=1.05e9, link_bandwidth=50e9, wraps=4),
    Chip("TPU v5 lite", 197e12, 819e9, 15.75 * _GIB, clock=1.5e9, link_bandwidth=50e9, wraps=16),
    Chip("TPU v5e", 197e12, 819e9, 15.75 * _GIB, clock=1.5e9, link_bandwidth=50e9, wraps=16),
    Chip("TPU v5p", 459e12, 2765e9, 95.73 * _GIB, clock=1.75e9, link_bandwidth=100e9, wraps=4),
    Chip("TPU v5", 459e12, 2765e9, 95.73 * _GIB, clock=1.75e9, link_bandwidth=100e9, wraps=4),
    Chip("TPU v6 lite", 918e12, 1640e9, 31.24 * _GIB, clock=1.75e9, link_bandwidth=112e9, wraps=16),
    Chip("TPU v6e", 918e12, 1640e9, 31.24 * _GIB, clock=1.75e9, link_bandwidth=112e9, wraps=16),
    Chip("TPU7x", 2307e12, 7380e9, 94.74 * _GIB, devices=2, clock=2.2e9, link_bandwidth=100e9, wraps=4),
    Chip("A100", 312e12, 2039e9, 80 * _GB),
    Chip("H100 PCIe", 756e12, 2000e9, 80 * _GB),
    Chip("H100", 989e12, 3350e9, 80 * _GB),
    Chip("H200", 989e12, 4800e9, 141 * _GB),
)


def chip_of(device: Any) -> Chip | None:
    """Return the chip of a `jax.Device` (or anything with a `device_kind`), None where it is not known (a CPU)."""
    kind = device.device_kind.lower()
    return next((chip for chip in CHIPS if chip.kind.lower() in kind), None)
