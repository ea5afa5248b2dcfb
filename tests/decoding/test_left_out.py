"""A step without some of its parts: what a benchmark subtracts must be that part, all of it and nothing else."""

import dataclasses
import math
import re

import jax
import pytest

from stagjax.bench.programs import chip_bytes, decode_program
from stagjax.decoding.placement import LEFT_OUT, abstract_placed, make_placement
from stagjax.mesh import DecodeMesh
from tests.variants import RECURRENT, VARIANTS

HELD = {
    "mlp": ("gate_up", "down"),
    "self_attention": ("attention_in", "attention_out"),
    "cross_attention": ("cross_query", "cross_out", "memory_in", "memory_out"),
}

SOME = ("separate", "shared", "parallel", "lag_0", "everything")


def without(placement, *parts):
    return dataclasses.replace(placement, without=frozenset(parts))


def compiled(placement, batch=2, context=16):
    traceable = decode_program(placement, batch, context)
    return traceable.function.lower(*traceable.arguments).compile()


def leaves(placement):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(abstract_placed(placement))}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("part", HELD)
def test_a_part_leaves_with_its_weights(name, part):
    config = VARIANTS[name]
    for stack in {1, config.num_stacks}:
        placement = make_placement(config, DecodeMesh(stack=stack, tensor=2))
        whole, rest = leaves(placement), leaves(without(placement, part, "handoff"))
        own = {path for path in whole if path.split("'")[-2:-1] and path.split("'")[-2] in HELD[part]}
        if part == "self_attention" and config.cross_attention == "parallel":
            # Joined with the projections of cross-attention, which stay.
            assert chip_bytes(list(rest.values())) < chip_bytes(list(whole.values()))
        else:
            assert set(rest) == set(whole) - own
            assert bool(own) == (part != "cross_attention" or config.num_stacks > 1)


@pytest.mark.parametrize("part", LEFT_OUT)
@pytest.mark.parametrize("name", SOME)
def test_every_step_runs_without_a_part(name, part):
    config = VARIANTS[name]
    stack = config.num_stacks
    placement = without(make_placement(config, DecodeMesh(stack=stack, tensor=2)), part)
    text = compiled(placement).as_text()
    sums = text.count("all-reduce(") + text.count("all-gather(")
    assert bool(sums) == (part != "collectives")
    handed = text.count("collective-permute(")
    away = part in ("collectives", "handoff", "cross_attention") or stack == 1
    # Without cross-attention nothing reads what would be handed over.
    assert bool(handed) == (not away)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_steps_run_without_a_part(name):
    placement = make_placement(RECURRENT[name], mode="recurrent")
    for part in LEFT_OUT:
        compiled(without(placement, part))


def test_the_products_of_a_part_are_gone_and_no_others():
    config = VARIANTS["separate"]
    placement = make_placement(config)
    D, F, V, H = config.model_dim, config.ff_dim, config.vocab_size, config.head_dim
    N, L, B, S = config.num_heads, config.layers_per_stack, 2, 16
    attention = 2 * B * (4 * D * N * H + 2 * N * H * S)
    expected = {
        "self_attention": 2 * L * attention,
        "cross_attention": L * attention,
        "mlp": 2 * L * 2 * B * 3 * D * F,
        "logits": 2 * B * D * V,
        "sampling": 0,
    }
    flops = lambda placement: _products(compiled(placement, B, S).as_text())
    whole = flops(placement)
    assert whole == sum(expected.values())
    for part, own in expected.items():
        assert whole - flops(without(placement, part)) == own, part


def _products(text):
    """Count the FLOPs of all matrix products of an HLO text."""
    shapes = {
        name: [int(n) for n in sizes.split(",") if n]
        for name, sizes in re.findall(r"%?([\w.-]+) = \w+\[([\d,]*)\]", text)
    }
    total = 0
    for out, first, contracting in re.findall(
        r"= \w+\[([\d,]*)\]\S* dot\(\s*(?:\w+\[[\d,]*\]\S* )?%?([\w.-]+),.*?lhs_contracting_dims=\{([\d,]*)\}", text
    ):
        size = math.prod(int(n) for n in out.split(",") if n)
        total += 2 * size * math.prod(shapes[first][int(d)] for d in contracting.split(","))
    return total
