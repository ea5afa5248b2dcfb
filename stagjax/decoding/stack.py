"""One stack in decoding form: the layers of `stagjax.model.layers` with projections joined and norm scales folded in.

A decode step is a long chain of small products, so what it costs is the number of operations as much as their size:
projections of one stream are one product, what depends on the memory alone is computed for all layers at once before
the first, and a norm is one factor a row, applied after the product. Prefill runs the same function on rows of prompts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stagjax.decoding.placement import Placement
from stagjax.decoding.slices import Slices
from stagjax.model.layers import Rotary

# (layer, "self" or "cross", q_RNH, k_RKH, v_RKH) -> (heads_RNH, cache): how attention reaches earlier positions.
Attend = Callable[[int, str, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Rows(NamedTuple):
    """R rows, padded with zeros where they enter a product and cut off again before anything else sees them.

    The barriers keep the compiler from moving the cut in front of the product, which would undo the padding.
    """

    count: int
    padded: int

    def widen(self, x: jax.Array) -> jax.Array:
        """Pad to what products take."""
        if self.padded == self.count:
            return x
        return jax.lax.optimization_barrier(jnp.pad(x, ((0, self.padded - self.count), (0, 0))))

    def narrow(self, x: jax.Array) -> jax.Array:
        """Cut a product's result to the rows that are real."""
        return x if self.padded == self.count else jax.lax.optimization_barrier(x)[: self.count]


def run_stack(
    placement: Placement,
    stack: dict[str, Any],
    x_RD: jax.Array,
    memory_RD: jax.Array | None,
    rotary: Rotary,
    attend: Attend,
    rows: Rows,
    *,
    memory_at_once: bool,
) -> tuple[jax.Array, tuple]:
    """Run one stack over rows of embeddings.

    Args:
      placement: which heads are on this chip.
      stack: of `DecodeParams`, this chip's part.
      x_RD: the embeddings.
      memory_RD: the previous stack's outputs, shifted by the lag; None where the stack has no cross-attention.
      rotary: for arrays [R,heads,H].
      attend: how attention reaches earlier positions; its caches come back.
      rows: padding of products.
      memory_at_once: project the memory for all layers in one product (its result is L times as wide), or layer by
        layer.

    Returns:
      The stack's normed output [R,D], and for each layer (self-attention's cache, cross-attention's or None).
    """
    read = _memory_reader(placement, stack, memory_RD, rotary, rows, at_once=memory_at_once)
    parts = _Parts(placement, rotary, attend, rows, read)
    x_RD = rows.widen(x_RD)
    caches = []
    for l, weights in enumerate(stack["layers"]):
        heads, self_cache, cross_cache = parts.side_by_side(l, weights, x_RD)
        with jax.named_scope("self_attention"):
            deltas = (
                [parts.product(rows.widen(jnp.concatenate(heads, axis=1)), weights["attention_out"])] if heads else []
            )
            if "memory_out" in stack:
                deltas.append(read(l))
            if deltas:
                x_RD = parts.add(x_RD, functools.reduce(jnp.add, deltas))
        if "cross_query" in weights:
            with jax.named_scope("cross_attention"):
                query = rows.narrow(parts.of_normed(x_RD, weights["cross_query"]))
                cross_out, cross_cache = parts.cross_attention(l, query)
                x_RD = parts.add(x_RD, parts.product(rows.widen(cross_out), weights["cross_out"]))
        if "down" in weights:
            with jax.named_scope("mlp"):
                x_RD = parts.add(x_RD, parts.mlp(weights, x_RD))
        caches.append((self_cache, cross_cache))
    with jax.named_scope("combination"):
        out_RD = x_RD.astype(parts.wide) * parts.scale_R1(x_RD) * stack["out_norm"].astype(parts.wide)
    return out_RD.astype(x_RD.dtype)[: rows.count], tuple(caches)


class _Parts:
    """The parts of a layer, and what they share."""

    def __init__(
        self,
        placement: Placement,
        rotary: Rotary,
        attend: Attend,
        rows: Rows,
        read: Callable[[int], Any],
    ):
        self.config, self.slices = placement.config, Slices(placement)
        self.rotary, self.attend, self.rows, self.read = rotary, attend, rows, read
        self.dtype = jnp.dtype(self.config.compute_dtype)
        self.wide = jnp.promote_types(self.dtype, jnp.float32)
        own = placement.computes("self_attention")
        self.num_queries = placement.layout.query.shape[1] if own else 0
        self.num_keys = placement.layout.kv.shape[1] if own else 0

    def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """Return x times a matrix, in float32 (or wider)."""
        return jnp.dot(x, weight, preferred_element_type=self.wide)

    def scale_R1(self, x_RD: jax.Array) -> jax.Array:
        """Return the factor of each row by which RMSNorm multiplies it, besides its learned scale."""
        mean_square_R1 = jnp.mean(jnp.square(x_RD.astype(self.wide)), axis=-1, keepdims=True)
        return jax.lax.rsqrt(mean_square_R1 + self.config.norm_eps)

    def of_normed(self, x_RD: jax.Array, weight: jax.Array) -> jax.Array:
        """Return the norm of x times a matrix that holds the norm's learned scale already."""
        return self.product(x_RD, weight) * self.scale_R1(x_RD)

    def add(self, x_RD: jax.Array, partial_RD: jax.Array) -> jax.Array:
        """Add the sum of all chips' partial results to the residual stream."""
        # Padded rows are added too: cutting them off and on again would cost two operations a sum.
        return x_RD + self.slices.sum_slice(partial_RD.astype(self.dtype))

    def side_by_side(self, l: int, weights: dict, x_RD: jax.Array) -> tuple[list[jax.Array], Any, Any]:
        """Return the heads [R,NH] of what reads the stream as it is, before their projection, and its caches.

        That is self-attention, and cross-attention where it is parallel.
        """
        heads, self_cache, cross_cache = [], None, None
        if "attention_in" not in weights:
            return heads, self_cache, cross_cache
        H = self.config.head_dim
        with jax.named_scope("self_attention"):
            joined = self.rows.narrow(self.of_normed(x_RD, weights["attention_in"]))
            values = (self.num_queries + self.num_keys) * H
            end = values + self.num_keys * H
            if end:
                # Queries and keys stand side by side: they are rotated as one array.
                rotated = self.rotary(self._heads(joined[:, :values])).astype(self.dtype)
                q_RNH, k_RKH = rotated[:, : self.num_queries], rotated[:, self.num_queries :]
                v_RKH = self._heads(joined[:, values:end]).astype(self.dtype)
                out, self_cache = self.attend(l, "self", q_RNH, k_RKH, v_RKH)
                heads.append(out.reshape(self.rows.count, -1))
        if joined.shape[1] > end:
            with jax.named_scope("cross_attention"):
                out, cross_cache = self.cross_attention(l, joined[:, end:])
                heads.append(out)
        return heads, self_cache, cross_cache

    def cross_attention(self, l: int, query: jax.Array) -> tuple[jax.Array, Any]:
        """Return attention's heads [R,NH] before their projection, and its cache."""
        q_RNH = self.rotary(self._heads(query)).astype(self.dtype)
        out, cache = self.attend(l, "cross", q_RNH, *self.read(l))
        return out.reshape(self.rows.count, -1), cache

    def mlp(self, weights: dict, x_RD: jax.Array) -> jax.Array:
        """Return this chip's share of the MLP's output."""
        gate_RF, up_RF = jnp.split(self.of_normed(x_RD, weights["gate_up"]), 2, axis=1)
        hidden_RF = jax.nn.gelu(gate_RF, approximate=True) * up_RF
        return self.product(hidden_RF.astype(self.dtype), weights["down"])

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1, self.config.head_dim)


@jax.named_scope("cross_attention")
def _memory_reader(
    placement: Placement,
    stack: dict[str, Any],
    memory_RD: jax.Array | None,
    rotary: Rotary,
    rows: Rows,
    *,
    at_once: bool,
) -> Callable[[int], Any]:
    """Return l -> what layer l takes from the memory: (k_RKH, v_RKH), or partial outputs [R,D] for window 1."""
    if "memory_in" in stack:
        return _keys_and_values(placement, stack["memory_in"], rows.widen(memory_RD), rotary, rows, at_once)
    if "memory_out" not in stack:
        return lambda l: None
    part_RD = rows.widen(Slices(placement).part(memory_RD, axis=1))
    weight, D = stack["memory_out"], placement.config.model_dim
    wide = jnp.promote_types(memory_RD.dtype, jnp.float32)
    if not at_once:
        return lambda l: jnp.dot(part_RD, weight[:, l * D : (l + 1) * D], preferred_element_type=wide)
    out_RE = jnp.dot(part_RD, weight, preferred_element_type=wide)
    return lambda l: out_RE[:, l * D : (l + 1) * D]


def _keys_and_values(
    placement: Placement, weight: jax.Array, memory_RD: jax.Array, rotary: Rotary, rows: Rows, at_once: bool
) -> Callable[[int], tuple[jax.Array, jax.Array]]:
    """Project the memory; the columns of `weight` are the keys of all layers, then their values."""
    L, H, dtype = placement.config.layers_per_stack, placement.config.head_dim, memory_RD.dtype
    K = placement.layout.kv.shape[1]
    wide = jnp.promote_types(dtype, jnp.float32)

    def projected(columns: jax.Array) -> jax.Array:
        y = rows.narrow(jnp.dot(memory_RD, columns, preferred_element_type=wide))
        return y.reshape(rows.count, -1, H)

    if not at_once:
        columns = lambda number: weight[:, number * K * H : (number + 1) * K * H]
        return lambda l: (rotary(projected(columns(l))).astype(dtype), projected(columns(L + l)).astype(dtype))
    keys, values = jnp.split(projected(weight), 2, axis=1)
    # Layers first, in one go: each layer then takes what lies together.
    apart = lambda x: jnp.swapaxes(x.astype(dtype).reshape(rows.count, L, K, H), 0, 1)
    keys_LRKH, values_LRKH = apart(rotary(keys)), apart(values)
    return lambda l: (keys_LRKH[l], values_LRKH[l])
