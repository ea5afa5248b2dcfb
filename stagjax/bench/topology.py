"""TPU topologies without TPUs: libtpu compiles for chips that are only named.

libtpu is loaded once per process.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from stagjax import libtpu
from stagjax.config_rules import divisors
from stagjax.errors import UserError, unknown
from stagjax.mesh import coordinates

# The slices of v5e and v6e that exist. libtpu accepts more, and then fails in the midst of compiling, or aborts.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


class Family(NamedTuple):
    """A generation of TPUs for which libtpu compiles.

    Attributes:
      kind: `device_kind` of its devices.
      dimensions: sides of a slice.
      options: that libtpu needs.
    """

    kind: str
    dimensions: int
    options: dict[str, Any] = {}


# "megacore": the two cores of a chip as the one device that JAX has on a real v4.
FAMILIES = {
    "v4": Family("TPU v4", 3, {"chip_config_name": "megacore"}),
    "v5e": Family("TPU v5 lite", 2),
    "v5p": Family("TPU v5", 3),
    "v6e": Family("TPU v6 lite", 2),
    "tpu7x": Family("TPU7x", 3),
}
_EXAMPLES = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:4x4, tpu7x:2x2x4"


def topology_devices(name: str) -> list[jax.Device]:
    """Return the devices of a topology such as "v5e:4x4", in the order of their ids; programs compile for them.

    Raises:
      UserError: libtpu is not installed or another process holds it, or there is no such topology.
    """
    family, _, layout = name.partition(":")
    if family not in FAMILIES:
        raise unknown("TPU family in --topology", family, FAMILIES)
    flat = FAMILIES[family].dimensions == 2
    if not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2})" + ("" if flat else "{2}"), layout):
        raise UserError(f"--topology={name}: {layout!r} is no layout of chips; use one like {_EXAMPLES}")
    if flat and "x".join(sorted(layout.split("x"), key=int)) not in _FLAT:
        raise UserError(f"--topology={name}: {family} has no slices of {layout} chips; use one of {', '.join(_FLAT)}")
    if not libtpu.is_installed():
        raise UserError(
            f"--topology={name} is compiled for by libtpu, which is not installed; "
            "install it with: pip install 'stagjax[tpu]'"
        )
    try:
        return _devices(name)
    except RuntimeError as error:
        raise UserError(_explained(name, str(error))) from error


def stand_in(mesh: Mesh, devices: Sequence[jax.Device]) -> Mesh:
    """Return a mesh of the same shape for which a program of `mesh` can be compiled.

    libtpu compiles for a whole topology. Of parts it accepts few: of more than 16 v5e chips none ("limited ICI
    routing"), of other topologies the first ids and some rectangles; on the rest it fails, or ends the process (an
    all-reduce over 12 of 16 chips). So what does not use all chips is compiled for a smaller topology that it fills:
    its own rectangle if it is one, else its slices (groups along the last axis) next to each other, else any
    rectangle. Such programs differ from the real ones only in the routes that the compiler chooses; hops are counted on
    `mesh` itself.

    Args:
      mesh: of chips of one topology.
      devices: all devices of that topology.

    Raises:
      UserError: there is no smaller topology of that many chips.
    """
    family = next((name for name, family in FAMILIES.items() if family.kind == devices[0].device_kind), None)
    if mesh.size == len(devices) or family is None:
        return mesh
    for places in _arrangements(mesh):
        extent = places.max(axis=0)[1:] + 1
        if family != "v5e" or mesh.size <= 16 or (extent[0] in (4, 8, 16) and extent[1] <= 16):
            break
    else:
        raise UserError(
            f"libtpu does not compile for {mesh.size} of the {len(devices)} chips; use all of them, or a power of two"
        )
    # A host has 2x2 chips, but what is merely compiled for may have odd sides.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if (extent[:2] % 2).any() else {}
    layout = "x".join(str(side) for side in extent[: FAMILIES[family].dimensions])
    at = {coordinates(device): device for device in _devices(f"{family}:{layout}", **bounds)}
    chosen = np.empty(mesh.size, dtype=object)
    chosen[:] = [at[tuple(place)] for place in places.tolist()]
    return Mesh(chosen.reshape(mesh.devices.shape), mesh.axis_names, axis_types=mesh.axis_types)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Compile inside of this without JAX's persistent cache.

    What was compiled for chips that are not there can be kept, but not be read again without them: JAX warns of it.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # Whether there is one is decided once, at the first program.
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _arrangements(mesh: Mesh) -> Iterator[np.ndarray]:
    """Yield places [devices, (core, x, y, z)] for a mesh's devices that fill a rectangle, the most faithful first."""
    places = np.array([coordinates(device) for device in mesh.devices.flat])
    slices = places.reshape(-1, mesh.devices.shape[-1], places.shape[-1])
    corners, sides = slices.min(axis=1), np.ptp(slices, axis=1) + 1
    if _fills(places):
        yield places - places.min(axis=0)
    if all(map(_fills, slices)) and (sides == sides[0]).all():
        steps = np.zeros_like(corners)
        steps[:, 2] = np.arange(len(slices)) * sides[0, 2]
        yield (slices - corners[:, None] + steps[:, None]).reshape(places.shape)
    cores = len(set(places[:, 0]))
    if mesh.size % cores:
        cores = 1
    chips = mesh.size // cores
    for width in sorted(divisors(chips), key=lambda width: abs(width - chips / width)):
        places = np.zeros_like(places)
        chip, places[:, 0] = np.divmod(np.arange(mesh.size), cores)
        places[:, 2], places[:, 1] = np.divmod(chip, width)
        yield places


def _devices(name: str, **options: Any) -> list[jax.Device]:
    options |= FAMILIES[name.partition(":")[0]].options
    with libtpu.quiet():
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    return sorted(devices, key=lambda device: device.id)


def _explained(name: str, error: str) -> str:
    """Return one line on why libtpu refuses a topology."""
    if "lockfile" in error or "already in use" in error:
        return (
            f"--topology={name}: another process holds libtpu, which admits one at a time; "
            "wait for it, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 for both"
        )
    if "not divisible" in error:
        family, _, layout = name.partition(":")
        sides = [int(side) for side in layout.split("x")]
        even = "x".join(str(side + side % 2) for side in sides[:2]) + "".join(f"x{side}" for side in sides[2:])
        return (
            f"--topology={name}: a host has 2x2 chips, so that the first two sides must be even; "
            f"use e.g. {family}:{even}"
        )
    first = " ".join(error.split())[:200]
    return f"--topology={name}: libtpu refuses it ({first}); use one like {_EXAMPLES}"


def _fills(places: np.ndarray) -> bool:
    """Return whether places are all those of a rectangle."""
    return np.prod(np.ptp(places, axis=0) + 1) == len({tuple(place) for place in places.tolist()})
