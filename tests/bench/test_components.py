"""The split of a step: parts whose times are known must come back, and what they leave is the remainder."""

import pytest

from stagjax.bench.components import EVERYTHING, SILENT, WHOLE, parts_of, programs_of, split
from stagjax.bench.timing import Timing
from stagjax.decoding.placement import make_placement
from stagjax.mesh import DecodeMesh
from tests.variants import VARIANTS

COSTS = {
    "self_attention": 3.0,
    "cross_attention": 2.0,
    "mlp": 5.0,
    "handoff": 0.5,
    "logits": 1.5,
    "sampling": 0.25,
}
LOOP, HOST, TOKENS = 0.75, 0.4, 8


def placement_of(name="separate", **sizes):
    return make_placement(VARIANTS[name], DecodeMesh(**sizes))


def call_ms(left, tokens, together=0.0):
    """Return what a call takes: the sum of what is there, and `together` if self-attention and MLP both are."""
    there = {name: ms for name, ms in COSTS.items() if name not in left}
    if "cross_attention" not in there:
        there.pop("handoff", None)  # nothing reads it
    if "self_attention" in there and "mlp" in there:
        there["together"] = together
    return Timing(tuple(tokens * (sum(there.values()) + LOOP) + HOST + drift for drift in (0.0, 1.0, 0.2)))


def made(placement, together=0.0):
    times = lambda left: call_ms(left - SILENT, TOKENS, together)
    return split(placement, times, call_ms(WHOLE, 1, together), TOKENS)


def test_parts_come_back():
    figures = made(placement_of(stack=2, tensor=2))
    expected = {
        "self-attention": 3.0,
        "cross-attention": 2.0,
        "MLP": 5.0,
        "handoff": 0.5,
        "combination and logits": 1.5,
        "sampling": 0.25,
        "host": HOST / TOKENS,
        "embedding, norms, loop": LOOP,
    }
    assert {name: part.samples_ms[0] for name, part in figures.parts.items()} == pytest.approx(expected)
    assert figures.sum_ms == pytest.approx(figures.whole.median_ms, rel=0.02)
    assert figures.to_dict()["share_explained"] == pytest.approx(1, rel=0.02)


def test_what_two_parts_cost_together_is_shared_between_them():
    figures = made(placement_of(stack=2), together=1.0)
    assert figures.parts["self-attention"].samples_ms[0] == pytest.approx(3.5)
    assert figures.parts["MLP"].samples_ms[0] == pytest.approx(5.5)
    assert figures.remainder_ms == pytest.approx(0, abs=0.1)


def test_only_the_parts_that_are_there():
    names = lambda placement: [part.name for part in parts_of(placement)]
    assert names(placement_of("baseline")) == ["self-attention", "MLP", "combination and logits", "sampling"]
    assert "cross-attention" in names(placement_of()) and "handoff" not in names(placement_of())
    assert "handoff" in names(placement_of(stack=2))
    assert made(placement_of("baseline")).collectives is None
    assert made(placement_of("baseline", tensor=2)).collectives is not None


def test_each_part_differs_in_itself_alone():
    placement = placement_of(stack=2)
    for part in parts_of(placement):
        for present, absent in (part.of_whole, part.of_nothing):
            assert len(absent - present) == 1 and not present - absent
    programs = programs_of(placement)
    assert programs[WHOLE] == placement
    assert programs[EVERYTHING].without == EVERYTHING and not EVERYTHING & SILENT
    assert all(programs[left].without == left for left in programs)
