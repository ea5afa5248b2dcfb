"""What waits for what: the handoff, what it waits for itself, and chains of collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from stagjax.bench import hlo
from stagjax.bench.collectives import collectives
from stagjax.bench.waiting import between, chain, dependents, depends_on, sources, waiting
from tests.bench.snippets import LAGGED, OVERLAPPED, SERIAL, STEP
from tests.bench.test_collectives import SIZES, compiled


def names(instructions):
    return [instruction.name for instruction in instructions]


def permute(program):
    return next(c.instruction for c in collectives(program, SIZES) if c.kind == "collective-permute")


def kinds(path):
    return [(c.kind, c.axis, c.count) for c in path]


def hand_over(x):
    return jax.lax.ppermute(x, "stack", [(0, 1)])


def test_dependencies_go_through_loops_and_pairs():
    program = hlo.parse(STEP)
    assert depends_on(program, "embedded", "while.1")
    assert depends_on(program, "weights", "token")
    assert depends_on(program, "handoff-start", "result")
    assert not depends_on(program, "handoff-start", "token")
    assert not depends_on(program, "token", "weights")
    assert not depends_on(program, "token", "token")
    assert names(dependents(program, "handoff-start")) == ["handoff-done", "result"]
    assert depends_on(program, "fusion.1", "psum.1"), "within a loop's body"
    assert not depends_on(program, "fusion.1", "next")


def test_a_tuple_that_is_taken_apart_is_seen_through():
    text = STEP.replace(
        "  ROOT %result",
        "  %pair = (bf16[8,64]{1,0}, s32[8]{0}) tuple(%handoff-done, %token)\n"
        "  %again = s32[8]{0} get-tuple-element(%pair), index=1\n"
        "  ROOT %result",
    )
    assert not depends_on(hlo.parse(text), "handoff-done", "again")
    assert depends_on(hlo.parse(text.replace("%pair), index=1", "%pair), index=0")), "handoff-done", "again")


def test_nothing_waits_for_a_handoff_that_is_only_returned():
    program = hlo.parse(STEP)
    assert waiting(program, "handoff-start") == []
    assert names(waiting(program, "psum.2")) == ["logits", "gathered", "token", "checked", "endless"]
    assert names(waiting(hlo.parse(SERIAL), "handoff-start"))[:2] == ["psum.2", "logits"]


def test_a_handoff_may_be_moved_on_its_way_out_but_not_computed_with():
    def moved(x):
        ring = jnp.zeros((3, *x.shape))
        return jax.lax.dynamic_update_index_in_dim(ring, hand_over(x), 1, 0), jax.lax.psum(x, "tensor")

    program = compiled(moved, (P(None, "stack", "tensor"), P("stack")))
    assert waiting(program, permute(program)) == []

    def used(x):
        return jax.lax.psum(hand_over(x), "tensor")

    program = compiled(used, P("stack"))
    assert [instruction.kind for instruction in waiting(program, permute(program))] == ["all-reduce"]

    def scaled(x):
        return 2 * hand_over(x)

    program = compiled(scaled, P("stack", "tensor"))
    assert len(waiting(program, permute(program))) == 1

    def counted(x):
        return jnp.sum(hand_over(x) > 0, dtype=jnp.int32)[None]

    program = compiled(counted, P(("stack", "tensor")))
    assert waiting(program, permute(program)), "integers can be results too"


def test_a_lagged_handoff_comes_from_the_parameters():
    assert names(sources(hlo.parse(STEP), "handoff-start")) == ["while.1"]
    assert sources(hlo.parse(LAGGED), "handoff-start") == []

    def lagged(ring):
        place = jax.lax.axis_index("tensor") % 4
        return hand_over(jax.lax.dynamic_index_in_dim(ring, place, 0)), jax.lax.psum(jnp.sin(ring), "tensor")

    program = compiled(lagged, (P("stack", "tensor"), P("stack")))
    assert sources(program, permute(program)) == []

    def fresh(x):
        return hand_over(jnp.sin(x))

    program = compiled(fresh, P("stack", "tensor"))
    assert len(sources(program, permute(program))) == 1


def test_what_hides_a_handoff():
    program = hlo.parse(STEP)
    under_way = between(program, "handoff-start", SIZES)
    assert under_way.cycles == 200
    assert kinds(under_way.collectives) == [("all-reduce", "stack", 1), ("all-reduce", "stack,tensor", 1)]
    assert between(program, "psum.2", SIZES).cycles == 0, "it is synchronous"
    serial = between(hlo.parse(SERIAL), "handoff-start", SIZES)
    assert (serial.cycles, serial.collectives) == (0, ())
    start = next(line + "\n" for line in LAGGED.splitlines() if line.startswith("  %handoff-start = "))
    two = STEP.replace(
        "  %psum.2 = ",
        "  %other-start = (bf16[8,64]{1,0}, bf16[8,64]{1,0}) collective-permute-start(%out), "
        "source_target_pairs={{4,0}}\n"
        "  %other-done = bf16[8,64]{1,0} collective-permute-done(%other-start)\n"
        "  %psum.2 = ",
    )
    assert between(hlo.parse(two), "handoff-start", SIZES).cycles == 200, "not until another one ends"
    at_once = LAGGED.replace(start, "").replace("  %while.1 = ", start.replace("%sent", "%memory") + "  %while.1 = ")
    under_way = between(hlo.parse(at_once), "handoff-start", SIZES)
    assert under_way.cycles == 7 * 1000 + 200
    assert sum(c.count for c in under_way.collectives) == 7 + 2
    assert between(hlo.parse(OVERLAPPED), "async-collective-start", SIZES).cycles == 500


def test_the_longest_chain_of_collectives():
    expected = [("all-reduce", "tensor", 7), ("all-reduce", "stack", 1), ("all-reduce", "stack,tensor", 1)]
    assert kinds(chain(hlo.parse(STEP), SIZES)) == expected
    assert kinds(chain(hlo.parse(SERIAL), SIZES)) == [expected[0], ("collective-permute", "stack", 1), *expected[1:]]
    slow = chain(hlo.parse(STEP), SIZES, weight=lambda c: 10 if c.kind == "collective-permute" else 1)
    assert kinds(slow) == [expected[0], ("collective-permute", "stack", 1)], "by length, not by number"


@pytest.mark.parametrize(
    ("function", "out", "count"),
    [
        (lambda x: jax.lax.psum(jnp.sin(jax.lax.psum(x, "tensor")), "stack"), P(), 2),
        (lambda x: (jax.lax.psum(x, "tensor"), jax.lax.psum(jnp.sin(x), "stack")), (P("stack"), P(None, "tensor")), 1),
        (lambda x: (hand_over(x), jax.lax.psum(x, "tensor")), (P("stack", "tensor"), P("stack")), 1),
        (lambda x: jax.lax.psum(hand_over(x), "tensor"), P("stack"), 2),
        (lambda x: jax.lax.fori_loop(0, 5, lambda i, y: jax.lax.psum(jnp.sin(y), "tensor"), x), P("stack"), 5),
        (
            lambda x: (
                jax.lax.fori_loop(0, 3, lambda i, y: jax.lax.psum(jnp.sin(y), "tensor"), x),
                jax.lax.psum(jnp.cos(jax.lax.psum(x, "stack")), "stack"),
            ),
            (P("stack"), P(None, "tensor")),
            3,
        ),
    ],
)
def test_chains_of_real_programs(function, out, count):
    assert sum(c.count for c in chain(compiled(function, out), SIZES)) == count
