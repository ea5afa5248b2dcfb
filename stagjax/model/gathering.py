"""Weights that a training mesh divides, made whole where they are read; without a mesh nothing happens.

XLA left to itself gathers activations instead of weights, sums gradients in every chunk of the loss, or keeps whole
gradients on every device. The rules of differentiation that are written out here say where a sum belongs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from stagjax.sharding import TABLE, constrain, logical_axes, parameter_path, ways

Params = dict[str, Any]


def gather_layer(dtype: str, block: Params, cross: Params | None) -> tuple[Params, Params | None]:
    """Return one layer's weights as its matrix products read them: on a training mesh whole over fsdp.

    Called inside of the scan over layers, so that one layer's weights are whole at a time. Without rematerialisation
    the backward pass keeps those of all layers.
    """

    def whole(part: str, weights: Params) -> Params:
        def gather(path: tuple, weight: jax.Array) -> jax.Array:
            axes = logical_axes(f"{part}/{parameter_path(path)}")[2:]  # of one layer of one weight set
            return _gathered(weight, axes, dtype) if "model" in axes else weight

        return jax.tree_util.tree_map_with_path(gather, weights)

    if ways("rows") == 1:
        return block, cross
    return whole("blocks", block), None if cross is None else whole("cross", cross)


def gather_embeddings(dtype: str, params: Params) -> Params:
    """Return `params` with whole embeddings, on a training mesh a copy for each group of rows: [groups,V,D].

    Gathered once a step, the tied one in `dtype`, for lookup and logits. As a group has a copy of its own, the
    gradients of its rows, of the lookup and of every chunk of the cross-entropy, are summed before those of the groups.
    Of one table for all, XLA would sum the gradient, or even gather the logits, in every chunk.
    """
    if ways("rows") == 1:
        return params
    dtypes = {"embedding": dtype, "position_embedding": params["position_embedding"].dtype}
    return params | {name: _copied(params[name], logical_axes(name), dtype) for name, dtype in dtypes.items()}


def by_group(function: Callable[..., jax.Array], table: jax.Array, *rows: jax.Array) -> jax.Array:
    """Return function(table, *rows); of a table with a copy for each group, what each group returns for its rows."""
    if table.ndim == 2:
        return function(table, *rows)
    grouped = [leaf.reshape(table.shape[0], -1, *leaf.shape[1:]) for leaf in rows]
    return jax.vmap(function, spmd_axis_name=TABLE["rows"].training)(table, *grouped)


def look_up(table: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Return rows of a table, or for each group of rows those of its copy, as [B,T,D]."""
    if table.ndim == 2:
        return table[ids_BT]
    shape, dtype = table.shape[1:], table.dtype

    @jax.custom_vjp
    def rows(table: jax.Array, ids_BT: jax.Array) -> jax.Array:
        return table[ids_BT]

    def backward(ids_BT: jax.Array, grad_BTD: jax.Array) -> tuple[jax.Array, None]:
        # A frequent token's gradient is a sum of thousands: not in the compute dtype, in which the copy is.
        wide = jnp.promote_types(grad_BTD.dtype, jnp.float32)
        return jnp.zeros(shape, wide).at[ids_BT].add(grad_BTD.astype(wide)).astype(dtype), None

    rows.defvjp(lambda table, ids_BT: (table[ids_BT], ids_BT), backward)
    return by_group(rows, table, ids_BT).reshape(*ids_BT.shape, -1)


def _gathered(weight: jax.Array, axes: Sequence[str | None], dtype: str) -> jax.Array:
    """Return a weight in `dtype` and whole along "model". Its gradient is divided again as soon as it is summed."""
    stored = weight.dtype

    @jax.custom_vjp
    def gather(weight: jax.Array) -> jax.Array:
        return constrain(_in_rows(weight.astype(dtype), axes), *(None if axis == "model" else axis for axis in axes))

    def backward(_: None, grad: jax.Array) -> tuple[jax.Array]:
        # Not the derived rule, by which the gradient would be whole on every device too.
        return (constrain(_in_rows(grad, axes).astype(stored), *axes),)

    gather.defvjp(lambda weight: (gather(weight), None), backward)
    return gather(weight)


def _copied(table: jax.Array, axes: Sequence[str | None], dtype: str | jnp.dtype) -> jax.Array:
    """Return a table in `dtype`, a copy that is whole along "model" for each group of rows; gradients are summed."""
    stored, groups = table.dtype, ways("rows")

    @jax.custom_vjp
    def copy(table: jax.Array) -> jax.Array:
        table = _in_rows(table.astype(dtype), axes)
        return constrain(jnp.broadcast_to(table, (groups, *table.shape)), "rows", axes[0], None)

    def backward(_: None, grads: jax.Array) -> tuple[jax.Array]:
        return (constrain(_in_rows(jnp.sum(grads, axis=0), axes).astype(stored), *axes),)

    copy.defvjp(lambda table: (copy(table), None), backward)
    return copy(table)


def _in_rows(matrix: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Divide a matrix by rows for the way between devices, where they divide it.

    On a TPU parts of rows are whole tiles of memory and arrive in the order in which products read them. What comes in
    parts of columns does not: the product with `down` takes 2.4 times the cycles (6% of a step of pile.py), the tied
    table is copied before and after, and where D=1536 is divided over 128 chips its gradient is all-reduced instead of
    scattered, twice the bytes.
    """
    names = tuple(name for axis in (axes[0], "model") if axis for name in TABLE[axis].training)
    mesh = jax.sharding.get_abstract_mesh()
    by_rows = matrix.ndim == 2 and axes[0] != "model"
    if not by_rows or matrix.shape[0] % math.prod(mesh.shape[name] for name in names):
        return matrix
    return jax.lax.with_sharding_constraint(matrix, PartitionSpec(names, None))
