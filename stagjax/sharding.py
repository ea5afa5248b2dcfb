"""The one sharding table: parameter path -> logical axes -> mesh axes, with a column for training and one for decoding.

Every parameter matches exactly one rule, and a rule that no parameter can match is an error (idea: `ShardingRules` of
jax-llm-examples). Activations name logical axes too.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax.config import ModelConfig, divisors
from stagjax.errors import UserError

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
    "stack": MeshAxes((), ("stack",)),
    "cross": MeshAxes((), ("stack",)),
    "layer": MeshAxes((), ()),
    "batch": MeshAxes(("data", "fsdp"), ("data",)),
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


def parameter_path(path: tuple) -> str:
    """Return a `jax.tree_util` key path as the table writes it."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """Return the training sharding of every parameter (arrays or their shapes), a tree like `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, spec(logical_axes(parameter_path(path)), "training")), params
    )


def stored_shardings(mesh: Mesh, params: Any) -> Any:
    """Return how a checkpoint's parameters are read onto a decoding mesh, before they are padded and placed.

    A dimension that its axes do not divide (12 heads over 8 chips) is not divided yet.
    """

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        parts = []
        for size, axis in zip(leaf.shape, logical_axes(parameter_path(path)), strict=True):
            axes = TABLE[axis].decoding if axis else ()
            parts.append(axes if axes and size % math.prod(mesh.shape[name] for name in axes) == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree_util.tree_map_with_path(sharding, params)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Divide an activation by the training column; outside of a training mesh (`jax.set_mesh`) leave it alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "fsdp" not in mesh.axis_names or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, "training"))


def check_training(model: ModelConfig, mesh: Mesh, rows: int) -> None:
    """Raise `UserError` where a mesh does not divide the model or the `rows` of a batch part."""
    fsdp = mesh.shape["fsdp"]
    for field, axis in (
        ("num_heads", "tensor"),
        ("num_kv_heads", "tensor"),
        ("ff_dim", "tensor"),
        ("vocab_size", "tensor"),
        ("model_dim", "fsdp"),
    ):
        size = getattr(model, field)
        _divides("model", field, size, axis, mesh.shape[axis])
    groups = mesh.shape["data"] * fsdp
    if rows % groups:
        raise UserError(
            f"training.global_batch / training.accumulation = {rows} rows do not divide over "
            f"mesh.data={mesh.shape['data']} x mesh.fsdp={fsdp}; use a multiple of {groups} rows"
        )


def _divides(section: str, field: str, size: int, axis: str, ways: int) -> None:
    if size % ways:
        usable = ", ".join(str(divisor) for divisor in divisors(size) if divisor <= 256)
        padded = f", or {section}.{field}={-(-size // ways) * ways}" if field == "vocab_size" else ""
        raise UserError(f"{section}.{field}={size} does not divide over mesh.{axis}={ways}; use {usable}{padded}")


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
