"""Chips are found by a part of a device's kind."""

import types

import pytest

from stagjax.hardware import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12), ("NVIDIA H100 80GB HBM3", 989e12)],
)
def test_chips_are_looked_up_by_device_kind(kind, flops):
    assert chip_of(types.SimpleNamespace(device_kind=kind)).flops == flops


def test_an_unknown_device_has_no_chip():
    assert chip_of(types.SimpleNamespace(device_kind="cpu")) is None


def test_the_clock_explains_the_peak():
    """A multiply-add in each cell of a chip's matrix units every cycle: 4 or 8 units of 128x128, or 4 of 256x256."""
    units = {"TPU v4": 8 * 128**2, "TPU v5 lite": 4 * 128**2, "TPU v5p": 8 * 128**2, "TPU v6e": 4 * 256**2}
    for chip in CHIPS:
        if chip.kind in units:
            assert chip.clock * units[chip.kind] * 2 == pytest.approx(chip.flops, rel=0.01)
