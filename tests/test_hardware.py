"""Chips are found by a part of a device's kind."""

import re
import types

import jax
import jax.numpy as jnp
import pytest

from stagjax.bench.topology import FAMILIES, topology_devices
from stagjax.hardware import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)
def test_chips_are_looked_up_by_device_kind(kind, flops):
    assert chip_of(types.SimpleNamespace(device_kind=kind)).flops == flops


def test_an_unknown_device_has_no_chip():
    assert chip_of(types.SimpleNamespace(device_kind="cpu")) is None


def test_the_clock_explains_the_peak():
    """A multiply-add in each cell of a chip's matrix units every cycle: 4 or 8 units of 128x128, 4 or 8 of 256x256."""
    units = {"TPU v4": 8 * 128**2, "TPU v5 lite": 4 * 128**2, "TPU v5p": 8 * 128**2, "TPU v6e": 4 * 256**2}
    units["TPU7x"] = 2 * 4 * 256**2
    for chip in CHIPS:
        if chip.kind in units:
            assert chip.clock * units[chip.kind] * 2 == pytest.approx(chip.flops, rel=0.01)


def test_a_device_of_a_chip_that_is_two_has_half_of_it():
    chip = chip_of(types.SimpleNamespace(device_kind="TPU7x"))
    assert (chip.device_flops, chip.device_bandwidth) == (2307e12 / 2, 7380e9 / 2)
    chip = chip_of(types.SimpleNamespace(device_kind="TPU v5 lite"))
    assert (chip.device_flops, chip.device_bandwidth) == (197e12, 819e9)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_memory_and_the_devices_of_a_chip_are_those_of_libtpu(family):
    pytest.importorskip("libtpu")
    devices = topology_devices(f"{family}:2x2x1" if FAMILIES[family].dimensions == 3 else f"{family}:2x2")
    chip = chip_of(devices[0])
    assert len(devices) == 4 * chip.devices
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    too_large = jax.ShapeDtypeStruct((1024, 2**30), jnp.float32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x * 2 + x.sum()).lower(too_large).compile()
    said = re.search(r"available HBM \(([\d.]+)G\)", str(refused.value))
    # Releases of libtpu differ in the last digit.
    assert float(said[1]) == pytest.approx(chip.memory / 2**30, abs=0.015)
