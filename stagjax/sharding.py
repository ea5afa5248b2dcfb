"""The one sharding table: parameter path -> logical axes -> mesh axes, with a column for training and one for decoding.

Every parameter matches exactly one rule, and a rule that no parameter can match is an error (idea: `ShardingRules` of
jax-llm-examples). Activations name logical axes too.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from stagjax.config import ModelConfig
from stagjax.division import check_sizes

# Where in the parameter tree -> what its dimensions are. A path is the keys of the tree joined by "/".
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("embedding", ("vocabulary", "model")),
    ("position_embedding", (None, "model")),
    ("combine", (None,)),
    ("out_norm/scale", ("stack", None)),
    ("blocks/*_norm/scale", ("stack", "layer", None)),
    ("blocks/self_attention/query", ("stack", "layer", "model", "heads", None)),
    ("blocks/self_attention/key", ("stack", "layer", "model", "kv_heads", None)),
    ("blocks/self_attention/value", ("stack", "layer", "model", "kv_heads", None)),
    ("blocks/self_attention/out", ("stack", "layer", "heads", None, "model")),
    ("blocks/mlp/gate", ("stack", "layer", "model", "hidden")),
    ("blocks/mlp/up", ("stack", "layer", "model", "hidden")),
    ("blocks/mlp/down", ("stack", "layer", "hidden", "model")),
    ("cross/norm/scale", ("cross", "layer", None)),
    ("cross/attention/query", ("cross", "layer", "model", "heads", None)),
    ("cross/attention/key", ("cross", "layer", "model", "kv_heads", None)),
    ("cross/attention/value", ("cross", "layer", "model", "kv_heads", None)),
    ("cross/attention/out", ("cross", "layer", "heads", None, "model")),
)


class MeshAxes(NamedTuple):
    """Over which mesh axes a logical axis is divided, in training and in decoding."""

    training: tuple[str, ...]
    decoding: tuple[str, ...]


TABLE: dict[str, MeshAxes] = {
    #                       training           decoding
    "vocabulary": MeshAxes(("tensor",), ("stack", "tensor")),  # decoding: the logits are divided over all chips
    "model": MeshAxes(("fsdp",), ()),
    "heads": MeshAxes(("tensor",), ("tensor",)),
    "kv_heads": MeshAxes(("tensor",), ("tensor",)),
    "hidden": MeshAxes(("tensor",), ("tensor",)),
    "stack": MeshAxes(("stack",), ("stack",)),
    "cross": MeshAxes((), ("stack",)),  # training: P-1 sets (or one) never divide over P slices
    "layer": MeshAxes((), ()),
    "batch": MeshAxes(("data", "fsdp"), ("data",)),  # in the layers, of which each slice runs those of its stack
    "rows": MeshAxes(("data", "fsdp", "stack"), ("data",)),  # outside of them: lookup and loss, in equal parts for all
}


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Return what the dimensions of the parameter at `path` are; exactly one rule matches."""
    matches = [axes for pattern, axes in RULES if fnmatch.fnmatchcase(path, pattern)]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} sharding rules match the parameter {path!r}; exactly one must")
    return matches[0]


def spec(axes: Sequence[str | None], column: str) -> PartitionSpec:
    """Return the `PartitionSpec` of an array whose dimensions are `axes`, by a column of the table."""
    return PartitionSpec(*(None if axis is None else getattr(TABLE[axis], column) or None for axis in axes))


def parameter_spec(mesh: Mesh | AbstractMesh, path: str, shape: Sequence[int], column: str) -> PartitionSpec:
    """Return the `PartitionSpec` of the parameter at `path`: what its axes do not divide is not divided.

    In training that is the one set of shared weights, of which each slice holds a copy (all else is refused by
    `check_training`); in decoding also, say, 12 heads over 8 chips, before they are padded.
    """
    parts = []
    for size, axis in zip(shape, logical_axes(path), strict=True):
        names = getattr(TABLE[axis], column) if axis else ()
        parts.append(names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None)
    return PartitionSpec(*parts)


def parameter_path(path: tuple) -> str:
    """Return a `jax.tree_util` key path as the table writes it."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """Return the training sharding of every parameter (arrays or their shapes), a tree like `params`."""
    return _parameter_shardings(mesh, params, "training")


def stored_shardings(mesh: Mesh, params: Any) -> Any:
    """Return how a checkpoint's parameters are read onto a decoding mesh, before they are padded and placed."""
    return _parameter_shardings(mesh, params, "decoding")


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Divide an activation by the training column; outside of a training mesh (`jax.set_mesh`) leave it alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _trains(mesh) or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, "training"))


def constrain_parameters(tree: Any) -> Any:
    """Divide a tree like the parameters as training divides those; outside of a training mesh leave it alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _trains(mesh) or mesh.size == 1:
        return tree

    def divide(path: tuple, leaf: jax.Array) -> jax.Array:
        divided = parameter_spec(mesh, parameter_path(path), leaf.shape, "training")
        return jax.lax.with_sharding_constraint(leaf, divided)

    return jax.tree_util.tree_map_with_path(divide, tree)


def ways(axis: str) -> int:
    """Return into how many parts the training mesh in context divides a logical axis; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in TABLE[axis].training) if _trains(mesh) else 1


def check_training(model: ModelConfig, mesh: Mesh, rows: int, microbatches: int | None = None) -> None:
    """Raise `UserError` where a mesh does not divide the model, the `rows` of a batch part or its microbatches."""
    check_sizes(model, mesh.shape, rows, microbatches)


def _parameter_shardings(mesh: Mesh, params: Any, column: str) -> Any:
    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(mesh, parameter_path(path), leaf.shape, column))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _trains(mesh: AbstractMesh) -> bool:
    return not mesh.empty and "fsdp" in mesh.axis_names


# The decoding form of the parameters (`stagjax.decoding.placement`): matrices whose first dimension holds the slices'
# parts one after the other. Looked up by name; the decoding column divides them.
PLACED: dict[str, tuple[str | None, ...]] = {
    "embedding": ("vocabulary", None),
    "position_embedding": (None, None),
    "alpha": ("stack",),
    "out_norm": ("stack",),
    "attention_in": ("stack", "heads"),
    "attention_out": ("stack heads", None),
    "cross_query": ("stack", "heads"),
    "cross_out": ("stack heads", None),
    "memory_in": ("stack", "kv_heads"),
    "memory_out": ("stack hidden", None),
    "gate_up": ("stack", "hidden"),
    "down": ("stack hidden", None),
}


def placed_spec(name: str) -> PartitionSpec:
    """Return the `PartitionSpec` of an array of the decoding form."""
    parts = []
    for axes in PLACED[name]:
        names = () if axes is None else tuple(axis for part in axes.split() for axis in TABLE[part].decoding)
        parts.append(names or None)
    return PartitionSpec(*parts)
