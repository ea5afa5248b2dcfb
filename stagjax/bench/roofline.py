"""The least time that a program could take: its bytes over the memory's bandwidth, its FLOPs over the peak.

Peaks are what the maker publishes, or where that is not known (a CPU, an unlisted chip) what is measured on the devices
in the same run.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stagjax.bench.timing import in_turns
from stagjax.distributed import barrier, takes_part
from stagjax.hardware import chip_of

PUBLISHED, MEASURED = "published", "measured"


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What one device can do.

    Attributes:
      flops: FLOP/s of matrix products in the compute dtype.
      bandwidth: bytes per second read from memory.
      working_set: bytes that were read in measuring the bandwidth; None if it is published.
      source: "published" or "measured".
    """

    flops: float
    bandwidth: float
    working_set: int | None
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time of a program on one device, in milliseconds, and what bounds it."""

    memory_ms: float
    compute_ms: float

    @property
    def floor_ms(self) -> float:
        """The larger of the two: they can overlap."""
        return max(self.memory_ms, self.compute_ms)

    @property
    def bound(self) -> str:
        """Return "memory" or "compute"."""
        return "memory" if self.memory_ms >= self.compute_ms else "compute"


def roofline(read_bytes: float, flops: float, peaks: Peaks) -> Roofline:
    """Return the floor of a program that reads and computes so much on each device."""
    return Roofline(1e3 * read_bytes / peaks.bandwidth, 1e3 * flops / peaks.flops)


class Peakmeter:
    """Finds the peaks of devices; measures each working set once.

    Args:
      dtype: of the matrix products.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype
        self._measured: dict[tuple, Peaks] = {}

    def peaks(self, mesh: Mesh, working_set: int) -> Peaks:
        """Return the peaks of each device of a mesh while all of them work at once.

        Args:
          mesh: devices.
          working_set: bytes that one step reads on a device. Where it fits a cache the cache is what it is read from,
            so the bandwidth is measured on so many bytes (to a power of two, from 1 MB to 1 GB).
        """
        chip = chip_of(mesh.devices.flat[0])
        if chip is not None:
            return Peaks(chip.device_flops, chip.device_bandwidth, None, PUBLISHED)
        size = 1 << min(max((int(working_set) - 1).bit_length(), 20), 30)
        key = (tuple(mesh.devices.flat), size)
        if key not in self._measured:
            self._measured[key] = Peaks(_flops(key[0], self.dtype), _bandwidth(key[0], size), size, MEASURED)
        return self._measured[key]


@functools.lru_cache(maxsize=8)
def _flops(devices: tuple, dtype: str) -> float:
    """Measure the FLOP/s of a product of large square matrices on each device."""
    n, times = 1024, 4

    def chain(x_DD: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, y_DD: (x_DD @ y_DD) * (1 / n), x_DD)

    return times * 2 * n**3 / _seconds(devices, chain, (n, n), dtype)


def _bandwidth(devices: tuple, size: int) -> float:
    """Measure the bytes per second that each device reads in products of a matrix with a vector."""
    rows = 256
    columns = size // (4 * rows)
    times = max(1, (1 << 26) // size)

    def read(x: jax.Array) -> jax.Array:
        def body(_: int, v: jax.Array) -> jax.Array:
            # The next product needs the last one's result, or one product would do for all.
            return v * (1 + 1e-9 * jnp.sum(jnp.dot(x, v)))

        return jax.lax.fori_loop(0, times, body, jnp.ones(columns, x.dtype))

    return times * size / _seconds(devices, read, (rows, columns), "float32")


def _seconds(devices: tuple, function: Any, shape: tuple[int, ...], dtype: str) -> float:
    """Return the least seconds that a function of an array takes on each device, all working at once."""
    mesh = jax.make_mesh((len(devices),), ("device",), devices=devices, axis_types=(AxisType.Auto,))
    spec = PartitionSpec("device")
    part = lambda x: function(x[0])[None]
    program = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))

    def run() -> float:
        barrier("peaks")
        if not takes_part(mesh):
            return math.nan
        begun = time.perf_counter()
        jax.block_until_ready(program(x))
        return time.perf_counter() - begun

    if takes_part(mesh):
        sharding = NamedSharding(mesh, spec)
        x = jax.jit(lambda: jnp.full((len(devices), *shape), 0.5, dtype), out_shardings=sharding)()
    timing = in_turns({"peak": run}, repeats=7, warmup=2)["peak"]
    return 1e-3 * min(timing.samples_ms)
