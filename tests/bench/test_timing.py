"""Timings: medians, differences repeat by repeat, and programs in turns."""

import pytest

from stagjax.bench.timing import Timing, in_turns


def test_the_middle_and_the_spread():
    timing = Timing((4.0, 1.0, 3.0, 2.0, 50.0))
    assert timing.median_ms == 3.0
    assert timing.quartiles_ms == (2.0, 4.0)
    assert timing.to_dict() == {"median_ms": 3.0, "quartiles_ms": [2.0, 4.0], "extremes_ms": [1.0, 50.0], "samples": 5}
    assert Timing((7.0,)).quartiles_ms == (7.0, 7.0)


def test_differences_cancel_what_drifts():
    slow, fast = Timing((10.0, 20.0, 30.0)), Timing((9.0, 18.5, 29.0))
    assert slow.minus(fast).samples_ms == (1.0, 1.5, 1.0)
    assert slow.minus(fast).median_ms == 1.0
    assert slow.mean(fast).samples_ms == (9.5, 19.25, 29.5)
    assert slow.scaled(0.5).samples_ms == (5.0, 10.0, 15.0)
    with pytest.raises(ValueError, match="shorter"):
        slow.minus(Timing((1.0,)))


def test_programs_take_turns_and_warm_up_first():
    order, clock = [], iter(range(100))

    def program(name):
        def run():
            order.append(name)
            return next(clock)

        return run

    told = []
    timings = in_turns({"a": program("a"), "b": program("b")}, 2, 1, lambda name, repeat: told.append((name, repeat)))
    assert order == ["a", "b"] * 3
    assert told == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    # The first two calls were warm-up; seconds become milliseconds.
    assert timings["a"].samples_ms == (2000.0, 4000.0)
    assert timings["b"].samples_ms == (3000.0, 5000.0)
