"""Device meshes: which chips form a slice, for training and for decoding.

A slice is the set of chips that runs one stack. On a TPU it is a compact rectangle of the topology, so that its
all-reduces cross as few links as possible, and neighbouring slices touch, so that the handoff does too.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from stagjax.config import MeshConfig
from stagjax.config_rules import divisors
from stagjax.division import TRAINING_AXES, training_sizes
from stagjax.errors import UserError, unknown
from stagjax.rules import is_whole, shown

DECODING_AXES = ("data", "stack", "tensor")


@dataclasses.dataclass(frozen=True)
class DecodeMesh:
    """Sizes of a decoding mesh.

    Attributes:
      data: groups among which the rows of a batch are divided.
      stack: slices; the number of stacks that run in a step, or 1 to run all of them on the same chips.
      tensor: chips of a slice, among which heads, hidden units and vocabulary are divided.
    """

    data: int = 1
    stack: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """Chips that are used."""
        return self.data * self.stack * self.tensor

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return ",".join(f"{name}={size}" for name, size in dataclasses.asdict(self).items())

    @classmethod
    def parse(cls, text: str) -> "DecodeMesh":
        """Read "stack=2,tensor=8"; axes that are not named have size 1, and so have all of an empty text.

        Raises:
          UserError: an unknown axis, or a size that is no positive integer.
        """
        sizes = {}
        for part in filter(None, text.split(",")):
            name, _, size = part.strip().partition("=")
            if name not in DECODING_AXES:
                raise unknown("mesh axis", name, DECODING_AXES)
            if not is_whole(size) or int(size) < 1:
                raise UserError(
                    f"--mesh={text}: the size of {name!r} is {shown(size)}; use 1 or more, e.g. stack=2,tensor=8"
                )
            sizes[name] = int(size)
        return cls(**sizes)


def training_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh `(data, fsdp, stack, tensor)` of a training run over all devices of all hosts.

    Several TPU slices, joined by the network of the data centre alone, are the outermost part of axis `data`: between
    them nothing travels but gradients.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or a slice would hold a part of the parameters.
    """
    devices = jax.devices() if devices is None else list(devices)
    # Devices of a topology that is only named know of no slices.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    sizes = training_sizes(config, len(devices), slices)
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        arranged = create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices)
        return Mesh(arranged, TRAINING_AXES, axis_types=(AxisType.Auto,) * len(TRAINING_AXES))
    return jax.make_mesh(sizes, TRAINING_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(TRAINING_AXES))


def decoding_mesh(sizes: DecodeMesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh `(data, stack, tensor)` of a decode step; chips that it does not need stay idle.

    Where devices have coordinates (TPUs) each slice is a rectangle of the least diameter that tiles the topology, and
    chip i of a slice sits where chip i of the next one does, so that a handoff is the same short way for all.

    Raises:
      UserError: more chips than there are, or a slice that does not tile the topology.
    """
    devices = jax.devices() if devices is None else list(devices)
    if sizes.size > len(devices):
        raise UserError(
            f"mesh {sizes} needs {sizes.size} devices, but there are {len(devices)}; "
            "lower mesh.tensor, or use more devices"
        )
    if coordinates(devices[0]) is None:
        slices = [devices[i : i + sizes.tensor] for i in range(0, len(devices), sizes.tensor)]
    else:
        slices = _rectangles(sizes.tensor, devices)
    chosen = np.empty((sizes.data * sizes.stack, sizes.tensor), dtype=object)
    for index in range(len(chosen)):
        chosen[index, :] = slices[index]
    return Mesh(
        chosen.reshape(sizes.data, sizes.stack, sizes.tensor),
        DECODING_AXES,
        axis_types=(AxisType.Auto,) * len(DECODING_AXES),
    )


def scoring_mesh(sizes: DecodeMesh, model_dim: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with the axes of training over the devices of a decoding mesh, to score given tokens on.

    Rows are divided over all of them. Parameters are divided within each group that holds a copy in decoding, as far
    as `model_dim` divides, so that both uses need about the same memory.

    Raises:
      UserError: as `decoding_mesh`.
    """
    chosen = decoding_mesh(sizes, devices).devices
    fsdp = math.gcd(model_dim, sizes.stack * sizes.tensor)
    return Mesh(chosen.reshape(-1, fsdp, 1, 1), TRAINING_AXES, axis_types=(AxisType.Auto,) * len(TRAINING_AXES))


def coordinates(device: jax.Device) -> tuple[int, ...] | None:
    """Return where a device sits in the topology (with the core on its chip), None where it does not say."""
    coords = getattr(device, "coords", None)
    return None if coords is None else (getattr(device, "core_on_chip", 0) or 0, *coords)


def _rectangles(size: int, devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Cut a topology into equal rectangles of `size` devices, neighbours one after the other."""
    at = {coordinates(device): device for device in devices}
    low = [min(axis) for axis in zip(*at, strict=True)]
    extent = [max(axis) - least + 1 for axis, least in zip(zip(*at, strict=True), low, strict=True)]
    if math.prod(extent) != len(at):
        raise UserError(f"the {len(at)} devices do not fill a rectangle; use all chips of a slice of the topology")
    shapes = [sides for sides in itertools.product(*map(divisors, extent)) if math.prod(sides) == size]
    if not shapes:
        possible = sorted({math.prod(sides) for sides in itertools.product(*map(divisors, extent))})
        topology = "x".join(str(side) for side in extent[1:])
        raise UserError(f"mesh.tensor={size} does not tile the {topology} topology; use one of {_listed(possible)}")
    sides = min(shapes, key=lambda sides: (sum(sides), sides[::-1]))
    corners = itertools.product(*(range(n // side) for n, side in zip(extent[::-1], sides[::-1], strict=True)))
    rectangles = []
    for corner in _snake(list(corners)):
        start = [index * side + least for index, side, least in zip(corner[::-1], sides, low, strict=True)]
        offsets = itertools.product(*(range(side) for side in sides[::-1]))
        rectangles.append([at[tuple(s + o for s, o in zip(start, offset[::-1], strict=True))] for offset in offsets])
    return rectangles


def _snake(corners: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Order grid points so that each is next to the one before: every second line is walked backwards."""
    size = [max(axis) + 1 for axis in zip(*corners, strict=True)]

    def turned(corner: tuple[int, ...]) -> tuple[int, ...]:
        rank, key = 0, []
        for index, extent in zip(corner, size, strict=True):
            key.append(extent - 1 - index if rank % 2 else index)
            rank = rank * extent + key[-1]
        return tuple(key)

    return sorted(corners, key=turned)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
