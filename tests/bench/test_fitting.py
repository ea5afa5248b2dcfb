"""Fitting the ledger's constants: those that made the measurements must come back."""

import dataclasses

import pytest

from stagjax.bench.fitting import fit
from stagjax.bench.ledger import HOPS, Calibration, Ledger, Line

TRUE = Calibration("true", hop_us=0.7, small_us=3.0, large_us=5.0)
BYTES_US = 0.4

# (kind, count, chips, hops) of the collectives of some steps, and what computing takes.
STEPS = [
    ([("all-reduce", 54, 8, 4), ("collective-permute", 1, 2, 4)], 0.5),
    ([("all-reduce", 72, 16, 6), ("all-gather", 1, 16, 6)], 0.9),
    ([("all-reduce", 72, 8, 4)], 1.8),
    ([("all-reduce", 36, 4, 2), ("all-gather", 1, 4, 2)], 2.2),
]


def latency_us(kind, chips, hops, calibration):
    if kind == "collective-permute":
        return calibration.permute_hop_us * hops + BYTES_US
    ways = calibration.reduce_ways if kind == "all-reduce" else calibration.other_ways
    constant = calibration.large_us if chips >= calibration.large_chips else calibration.small_us
    return constant + calibration.hop_us * ways * hops + BYTES_US


def ledger_of(collectives, compute_ms, calibration, compute):
    lines = tuple(
        Line(kind, "tensor", "psum", count, 3072, chips, hops, latency_us(kind, chips, hops, calibration), 0.0)
        for kind, count, chips, hops in collectives
    )
    return Ledger(compute, calibration.name, compute_ms, lines)


def row_of(collectives, compute_ms):
    """Return a row that was measured as `TRUE` says, with the plan's estimates beside it."""
    measured = ledger_of(collectives, compute_ms, TRUE, "hbm").step_ms
    estimates = [
        ledger_of(collectives, compute_ms, HOPS, "hbm"),
        ledger_of(collectives, 1.3 * compute_ms + 0.05, HOPS, "compiler"),
        ledger_of(collectives, compute_ms, dataclasses.replace(HOPS, name="published", hop_us=0.0), "hbm"),
    ]
    return {"measured": {"median_ms": measured}, "ledgers": [estimate.to_dict() for estimate in estimates]}


def test_the_constants_come_back():
    found = fit(row_of(*step) for step in STEPS)
    assert found.compute == "hbm"
    assert found.constants == pytest.approx({"hop_us": 0.7, "small_us": 3.0, "large_us": 5.0})
    assert found.error_ms == pytest.approx(0, abs=1e-9)
    assert found.steps == len(STEPS)
    assert found.option == "--calibration=fitted:hop_us=0.7,small_us=3,large_us=5"


def test_constants_are_never_negative_and_the_error_is_told():
    rows = [row_of(*step) for step in STEPS]
    rows[0]["measured"]["median_ms"] += 0.2
    found = fit(rows)
    assert min(found.constants.values()) >= 0
    assert found.error_ms > 0.01


def test_nothing_is_fitted_to_too_few_measurements():
    assert fit([row_of(*step) for step in STEPS[:2]]) is None
    assert fit([{"measured": {"median_ms": 1.0}, "ledgers": []}] * 5) is None
