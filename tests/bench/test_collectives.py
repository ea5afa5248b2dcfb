"""Collectives are named by mesh axes and counted with the loops around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stagjax.bench import hlo
from stagjax.bench.collectives import axis_of, collectives, tally
from tests.bench.snippets import OVERLAPPED, STEP

SIZES = {"data": 1, "stack": 2, "tensor": 4}


def mesh_of(sizes):
    return Mesh(np.array(jax.devices()).reshape(*sizes.values()), tuple(sizes))


def compiled(function, out):
    """Compile a function of one [8, 16] array for eight CPU devices and read it."""
    mapped = jax.shard_map(function, mesh=mesh_of(SIZES), in_specs=P("stack", "tensor"), out_specs=out, check_vma=False)
    return hlo.parse(jax.jit(mapped).lower(jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text())


def rows(program, sizes=SIZES):
    return [(c.kind, c.axis, c.primitive, c.count, c.bytes) for c in collectives(program, sizes)]


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        (((0, 1, 2, 3), (4, 5, 6, 7)), "tensor"),
        (((0, 4), (1, 5), (2, 6), (3, 7)), "stack"),
        ((tuple(range(8)),), "stack,tensor"),
        (((0, 1), (2, 3), (4, 5), (6, 7)), "part of tensor"),
        (((0, 5), (1, 4)), "part of stack,tensor"),
        (((0,), (1,)), "none"),
    ],
)
def test_groups_are_named_by_the_axes_along_which_they_differ(groups, axis):
    assert axis_of(groups, SIZES) == axis


@pytest.mark.parametrize(
    ("pairs", "axis"),
    [
        (((0, 4), (1, 5), (2, 6), (3, 7)), "stack"),
        (((0, 1), (1, 2), (2, 3)), "tensor"),
        (((0, 5),), "stack,tensor"),
        (((0, 0),), "none"),
    ],
)
def test_a_permute_need_not_reach_every_chip(pairs, axis):
    assert axis_of(pairs, SIZES, pairs=True) == axis


@pytest.mark.parametrize(
    ("function", "out", "row"),
    [
        (lambda x: jax.lax.psum(x, "tensor"), P("stack"), ("all-reduce", "tensor", "psum", 1, 64)),
        (lambda x: jax.lax.psum(x, "stack"), P(None, "tensor"), ("all-reduce", "stack", "psum", 1, 64)),
        (lambda x: jax.lax.psum(x, ("stack", "tensor")), P(), ("all-reduce", "stack,tensor", "psum", 1, 64)),
        (
            lambda x: jax.lax.all_gather(x, "tensor", axis=1, tiled=True),
            P("stack"),
            ("all-gather", "tensor", "all_gather", 1, 64),
        ),
        (
            lambda x: jax.lax.psum_scatter(x, "tensor", scatter_dimension=1, tiled=True),
            P("stack", "tensor"),
            ("reduce-scatter", "tensor", "reduce_scatter", 1, 64),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True),
            P("stack", "tensor"),
            ("all-to-all", "tensor", "all_to_all", 1, 64),
        ),
        (
            lambda x: jax.lax.ppermute(x, "stack", [(0, 1)]),
            P("stack", "tensor"),
            ("collective-permute", "stack", "ppermute", 1, 64),
        ),
        (
            lambda x: jax.lax.fori_loop(0, 5, lambda i, y: jax.lax.psum(jnp.sin(y), "tensor"), x),
            P("stack"),
            ("all-reduce", "tensor", "psum", 5, 64),
        ),
    ],
)
def test_real_programs(function, out, row):
    """Each chip holds [4, 4] float32: 64 bytes."""
    assert rows(compiled(function, out)) == [row]


def test_the_axes_are_those_of_the_mesh_that_is_given():
    program = compiled(lambda x: jax.lax.psum(x, "stack"), P(None, "tensor"))
    assert rows(program, {"tensor": 4, "stack": 2})[0][1] == "part of tensor"
    assert rows(program, {"rows": 2, "columns": 4})[0][1] == "rows"
    with pytest.raises(ValueError, match="runs on 8 chips, not on a mesh of {'tensor': 4}"):
        collectives(program, {"tensor": 4})


def test_gspmd_writes_groups_in_the_other_notation():
    mesh = mesh_of(SIZES)
    columns, lines, rows_ = (NamedSharding(mesh, spec) for spec in (P(None, "tensor"), P("tensor"), P("stack")))
    function = jax.jit(lambda x, v, w: (x @ v) @ w, in_shardings=(rows_, columns, lines), out_shardings=rows_)
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (16, 32), (32, 16)))
    text = function.lower(*shapes).compile().as_text()
    assert rows(hlo.parse(text)) == [("all-reduce", "tensor", "dot_general", 1, 4 * 16 * 4)]


def test_asynchronous_collectives_are_counted_once():
    found = collectives(hlo.parse(STEP), SIZES)
    assert [(c.kind, c.axis, c.count, c.bytes, c.asynchronous, c.channel) for c in found] == [
        ("all-reduce", "tensor", 7, 1024, False, 1),
        ("collective-permute", "stack", 1, 1024, True, 2),
        ("all-reduce", "stack", 1, 1024, False, 3),
        ("all-reduce", "stack,tensor", 1, 1024, False, 4),
    ]
    assert [c.primitive for c in found] == ["psum", "ppermute", "psum", "all_gather"]
    overlapped = collectives(hlo.parse(OVERLAPPED), SIZES)
    assert [(c.kind, c.axis, c.asynchronous, c.instruction) for c in overlapped] == [
        ("all-gather", "tensor", True, "async-collective-start")
    ]


def test_no_groups_stand_for_all_chips():
    text = STEP.replace("replica_groups=[2,4]<=[8]", "replica_groups={}")
    assert collectives(hlo.parse(text), SIZES)[0].axis == "stack,tensor"


def test_equal_collectives_are_added_up():
    program = compiled(lambda x: jax.lax.psum(jnp.sin(jax.lax.psum(x, "tensor")), "tensor"), P("stack"))
    row = {"kind": "all-reduce", "axis": "tensor", "primitive": "psum", "count": 2, "bytes": 64, "asynchronous": False}
    assert tally(collectives(program, SIZES)) == [row]
    assert [row["count"] for row in tally(collectives(hlo.parse(STEP), SIZES))] == [7, 1, 1, 1]
