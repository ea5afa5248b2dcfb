"""Which rows of a batch this host's devices hold, and the way from a host's rows to a batch over all hosts."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def own_rows(abstract: jax.ShapeDtypeStruct) -> np.ndarray:
    """Return the rows (of the first dimension) that devices of this host hold, ascending, int64.

    They follow from the sharding alone: the rows of a host need not lie side by side, and hosts that share rows, as
    where a layer is divided over devices of several hosts, each read them.

    Args:
      abstract: shape and sharding of the whole array.
    """
    return np.array(_own_rows(abstract.sharding, abstract.shape), np.int64)


def placed(arrays: Any, abstract: Any) -> Any:
    """Return a host's part of arrays as the arrays over all hosts.

    Args:
      arrays: pytree of NumPy arrays that hold the rows `own_rows`, in this order.
      abstract: a tree like it of shapes, dtypes and shardings of the whole arrays.
    """
    return jax.tree.map(_placed, arrays, abstract)


def gathered(values: np.ndarray, abstract: jax.ShapeDtypeStruct) -> np.ndarray:
    """Return, on all hosts, the values of all rows, of which each host has those of its own.

    Args:
      values: one for each of `own_rows(abstract)`.
      abstract: shape and sharding of an array with these rows.
    """
    mesh, spec = abstract.sharding.mesh, abstract.sharding.spec
    by_row = NamedSharding(mesh, PartitionSpec(*spec[:1]))
    like = jax.ShapeDtypeStruct(abstract.shape[:1], values.dtype, sharding=by_row)
    return np.asarray(_everywhere(mesh)(_placed(values, like)))


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    rows = _own_rows(like.sharding, like.shape)
    if len(array) != len(rows):
        raise ValueError(f"there are {len(array)} rows, but the devices of this host hold {len(rows)}")

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(like.shape[0])
        first = int(np.searchsorted(rows, start))
        return array[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


@functools.lru_cache(maxsize=2)
def _everywhere(mesh: Mesh) -> jax.stages.Wrapped:
    return jax.jit(lambda values: values, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.lru_cache(maxsize=16)
def _own_rows(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> tuple[int, ...]:
    held = {index[0].indices(shape[0])[:2] for index in sharding.addressable_devices_indices_map(shape).values()}
    return tuple(sorted({row for start, stop in held for row in range(start, stop)}))
