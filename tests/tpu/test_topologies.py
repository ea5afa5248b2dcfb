"""Slices by all their names, against what Google Cloud publishes."""

import pytest

from stagjax.errors import UserError
from tpu.topologies import find_slice, table


@pytest.mark.parametrize(
    ("name", "accelerator", "chips", "vm_hosts", "gke_hosts", "machine"),
    [
        ("v5e:1x1", "v5litepod-1", 1, 1, 1, "ct5lp-hightpu-1t"),
        ("v5e:2x2", "v5litepod-4", 4, 1, 1, "ct5lp-hightpu-4t"),
        ("v5e:2x4", "v5litepod-8", 8, 1, 2, "ct5lp-hightpu-4t"),
        ("v5e:4x4", "v5litepod-16", 16, 4, 4, "ct5lp-hightpu-4t"),
        ("v5e:16x16", "v5litepod-256", 256, 64, 64, "ct5lp-hightpu-4t"),
        ("v6e:2x4", "v6e-8", 8, 1, 2, "ct6e-standard-4t"),
        ("v6e:16x16", "v6e-256", 256, 64, 64, "ct6e-standard-4t"),
        ("v4:2x2x1", "v4-8", 4, 1, 1, "ct4p-hightpu-4t"),
        ("v4:2x2x4", "v4-32", 16, 4, 4, "ct4p-hightpu-4t"),
        ("v5p:2x2x1", "v5p-8", 4, 1, 1, "ct5p-hightpu-4t"),
        ("v5p:2x2x2", "v5p-16", 8, 2, 2, "ct5p-hightpu-4t"),
        ("v5p:4x4x8", "v5p-256", 128, 32, 32, "ct5p-hightpu-4t"),
        ("v5p:8x16x16", "v5p-4096", 2048, 512, 512, "ct5p-hightpu-4t"),
        ("tpu7x:1x1x1", "tpu7x-2", 1, 1, 1, "tpu7x-standard-1t"),
        ("tpu7x:2x2x1", "tpu7x-8", 4, 1, 1, "tpu7x-standard-4t"),
        ("tpu7x:4x4x4", "tpu7x-128", 64, 16, 16, "tpu7x-standard-4t"),
    ],
)
def test_published_slices(name, accelerator, chips, vm_hosts, gke_hosts, machine):
    found = find_slice(name)
    assert (found.accelerator_type, found.chips) == (accelerator, chips)
    assert (found.vm_hosts, found.gke_hosts, found.gke_machine) == (vm_hosts, gke_hosts, machine)


def test_every_chip_of_the_table_is_on_a_host():
    for name, _, chips, vm_hosts, gke_hosts, machine in table():
        if name.startswith("tpu7x:"):
            assert vm_hosts == 0  # GKE alone has them
        else:
            assert chips % vm_hosts == 0 and chips // vm_hosts in (1, 4, 8), name
        assert gke_hosts * int(machine.rpartition("-")[2][:-1]) == chips, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "--topology is missing"),
        ("v5:2x2", "unknown TPU family in --topology 'v5'"),
        ("v5e:3x3", "v5e has no slice '3x3'; use one of 1x1, 2x2"),
        ("v5e:16x16x1", "has no slice"),
        ("v5p:4x4", "'4x4' is not three sizes"),
        ("v5p:1x1x1", "multiple of 4"),
        ("tpu7x:16x24x28", "a pod has 9216 chips"),
        ("v5p:8x4x4", "from the smallest to the largest"),
        ("v5p:4x4x6", "multiple of 4"),
        ("v4:16x16x32", "a pod has 4096 chips"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        find_slice(name)


def test_families_of_the_plan_have_the_same_names():
    from stagjax.bench.topology import FAMILIES as PLANNED
    from tpu.topologies import FAMILIES

    assert set(PLANNED) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "named"),
    # As the tables of Google Cloud and of xpk have it: the most compact layout goes by the number alone.
    [("v5p:4x8x8", True), ("v5p:4x4x16", False), ("v5p:8x8x16", True), ("v4:4x16x16", False), ("v6e:8x16", True)]
    + [("v5p:2x2x4", True), ("v5p:4x4x12", True), ("tpu7x:1x1x1", True), ("v5p:4x12x12", True)],
)
def test_a_type_means_one_layout(name, named):
    assert find_slice(name).is_named_by_type == named


def test_chips_that_are_two_devices():
    assert (find_slice("tpu7x:2x2x1").devices, find_slice("v5p:2x2x1").devices) == (8, 4)
