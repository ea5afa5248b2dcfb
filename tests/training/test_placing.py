"""Rows of hosts: which ones follow from the sharding, and where they go."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax.mesh import TRAINING_AXES
from stagjax.sharding import spec
from stagjax.training import placing


class Host:
    """A sharding as one host of several sees it: only some of the devices are its own."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {device: self.sharding.devices_indices_map(shape)[device] for device in self.devices}


def rows_of_hosts(shape, num_hosts, order=None):
    """Return which of 16 rows each host holds on a mesh `(data, fsdp, stack, tensor)` of eight devices."""
    devices = np.array(jax.devices())
    mesh = Mesh((devices if order is None else devices[order]).reshape(shape), TRAINING_AXES)
    sharding = NamedSharding(mesh, spec(("rows", None), "training"))
    return [placing._own_rows(Host(sharding, part), (16, 3)) for part in np.split(devices, num_hosts)]


@pytest.mark.parametrize("num_hosts", [1, 2, 4, 8])
def test_hosts_read_equal_parts_one_after_the_other(num_hosts):
    rows = rows_of_hosts((2, 4, 1, 1), num_hosts)
    assert rows == [tuple(part) for part in np.split(np.arange(16), num_hosts)]


def test_hosts_that_share_rows_each_read_them():
    # Two hosts of four devices, tensor=8: each row is on all devices.
    assert rows_of_hosts((1, 1, 1, 8), 2) == [tuple(range(16))] * 2
    # Tensor=4 over hosts of two: hosts 0 and 1 share the first half.
    assert rows_of_hosts((1, 2, 1, 4), 4) == [tuple(range(8))] * 2 + [tuple(range(8, 16))] * 2


def test_rows_of_a_host_need_not_lie_side_by_side():
    rows = rows_of_hosts((1, 8, 1, 1), 2, order=[0, 4, 1, 5, 2, 6, 3, 7])
    assert rows == [(0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)]


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (1, 2, 2, 2), (1, 1, 1, 8)])
def test_rows_go_where_they_belong(shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), TRAINING_AXES)
    sharding = NamedSharding(mesh, spec(("rows", None), "training"))
    whole = np.arange(48).reshape(16, 3)
    like = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)
    np.testing.assert_array_equal(placing.own_rows(like), np.arange(16))
    array = placing.placed({"a": whole}, {"a": like})["a"]
    assert array.sharding == sharding
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_values_of_rows_are_gathered_in_their_order():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 1, 2), TRAINING_AXES)
    sharding = NamedSharding(mesh, spec(("rows", None), "training"))
    like = jax.ShapeDtypeStruct((8, 3), np.int32, sharding=sharding)
    np.testing.assert_array_equal(placing.gathered(np.arange(8)[::-1], like), np.arange(8)[::-1])


def test_rows_that_are_missing_are_found():
    mesh = Mesh(np.array(jax.devices()).reshape(8, 1, 1, 1), TRAINING_AXES)
    like = jax.ShapeDtypeStruct((8,), np.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match="there are 7 rows, but the devices of this host hold 8"):
        placing.placed(np.zeros(7, np.int32), like)
