"""Slices are compact rectangles, neighbours touch, and sizes that do not fit are refused by name."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from stagjax import libtpu
from stagjax.config import MeshConfig
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh, coordinates, decoding_mesh, training_mesh, training_sizes


@dataclasses.dataclass(frozen=True)
class Chip:
    """A stand-in for a TPU device."""

    id: int
    coords: tuple[int, ...]


def grid(*extent):
    """Return stand-ins for the chips of a topology, in the order of their ids: x fastest."""
    return [Chip(i, coords[::-1]) for i, coords in enumerate(itertools.product(*map(range, extent[::-1])))]


def distance(a, b):
    return sum(abs(x - y) for x, y in zip(coordinates(a), coordinates(b), strict=True))


@pytest.mark.parametrize(
    ("extent", "sizes", "diameter"),
    [
        ((4, 4, 1), DecodeMesh(stack=2, tensor=8), 4),
        ((4, 4, 1), DecodeMesh(stack=3, tensor=4), 2),
        ((4, 4, 1), DecodeMesh(stack=4, tensor=4), 2),
        ((4, 4, 1), DecodeMesh(data=2, stack=2, tensor=4), 2),
        ((4, 4, 1), DecodeMesh(tensor=16), 6),
        ((4, 4, 4), DecodeMesh(stack=4, tensor=16), 5),
        ((2, 2, 4), DecodeMesh(stack=2, tensor=8), 3),
    ],
)
def test_slices_are_compact_and_neighbours_touch(extent, sizes, diameter):
    mesh = decoding_mesh(sizes, grid(*extent))
    assert dict(mesh.shape) == {"data": sizes.data, "stack": sizes.stack, "tensor": sizes.tensor}
    for group in mesh.devices:
        for chips in group:
            assert max(distance(a, b) for a, b in itertools.combinations(chips, 2)) == diameter
        for before, after in itertools.pairwise(group):
            handoffs = {distance(a, b) for a, b in zip(before, after, strict=True)}
            assert len(handoffs) == 1, "every chip hands over by the same way"
            assert min(distance(a, b) for a in before for b in after) == 1
    assert len({chip.id for chip in mesh.devices.flat}) == sizes.size


def test_devices_without_coordinates_keep_their_order():
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=4))
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (DecodeMesh(tensor=3), "mesh.tensor=3 does not tile the 4x4x1 topology; use one of 1, 2, 4, 8, 16"),
        (DecodeMesh(stack=4, tensor=8), "needs 32 devices, but there are 16"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        decoding_mesh(sizes, grid(4, 4, 1))


def test_decode_meshes_are_read_from_text():
    assert DecodeMesh.parse("stack=2,tensor=8") == DecodeMesh(stack=2, tensor=8)
    assert DecodeMesh.parse(str(DecodeMesh(2, 3, 4))) == DecodeMesh(2, 3, 4)
    with pytest.raises(UserError, match="'tensr'.*tensor"):
        DecodeMesh.parse("tensr=8")
    with pytest.raises(UserError, match="the size of 'stack' is '0'; use 1 or more"):
        DecodeMesh.parse("stack=0")


def test_fsdp_takes_the_devices_that_are_left():
    assert training_sizes(MeshConfig(), 8) == (1, 8, 1, 1)
    assert training_sizes(MeshConfig(data=2, tensor=2), 8) == (2, 2, 1, 2)
    assert dict(training_mesh(MeshConfig(data=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "stack": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(tensor=3), "= 3 does not divide the 8 devices; use a product of 1, 2, 4, 8"),
        (MeshConfig(data=2, fsdp=2), "= 4, but there are 8 devices; set mesh.fsdp=None"),
    ],
)
def test_a_training_mesh_that_does_not_fit_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        training_mesh(config)


@pytest.fixture(scope="module")
def two_slices():
    pytest.importorskip("libtpu")
    with libtpu.quiet():
        return topologies.get_topology_desc("v5e:2x4", platform="tpu", num_slices=2).devices


@pytest.mark.parametrize("config", [MeshConfig(data=2), MeshConfig(data=4, tensor=2), MeshConfig(data=2, stack=2)])
def test_only_gradients_travel_between_tpu_slices(two_slices, config):
    mesh = training_mesh(config, two_slices)
    assert tuple(mesh.shape.values()) == training_sizes(config, 16)
    assert len(set(mesh.devices.flat)) == 16
    halves = np.split(mesh.devices, 2)
    assert [{device.slice_index for device in half.flat} for half in halves] == [{0}, {1}]


@pytest.mark.parametrize("data", [1, 3])
def test_parameters_are_not_divided_between_tpu_slices(two_slices, data):
    devices = two_slices if data == 1 else two_slices[:15]
    with pytest.raises(UserError, match=rf"mesh.data={data} is not a multiple of the 2 TPU slices.*use mesh.data=2"):
        training_mesh(MeshConfig(data=data), devices)
