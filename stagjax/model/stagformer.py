"""The model: parameters as one tree, and the forward pass of every variant over rows of tokens.

embedding [V,D]   position_embedding [max_length,D]   blocks {...} [W,L,...]   cross {...} [X,L,...]
out_norm [W,D]    combine [P] (only with combine="linear")
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from stagjax.config import ModelConfig
from stagjax.model.attention import own_slot, shift_memory
from stagjax.model.kernels import row_attention
from stagjax.model.layers import Attend, Block, Cross, RMSNorm, Rotary, layer
from stagjax.sharding import TABLE, constrain, logical_axes, parameter_path

Params = dict[str, Any]


class Outputs(NamedTuple):
    """Result of a forward pass: each stack's normed output [B,T,D], and what was kept of each stack's attentions.

    `kept[s]` is ((k_LBTKH, v_LBTKH), (k_LBTKH, v_LBTKH)) of self- and cross-attention (None where there is none), or
    None unless the pass was asked to keep them.
    """

    stacks: tuple[jax.Array, ...]
    kept: tuple[Any, ...]


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Return freshly initialised float32 parameters (spec: Conventions)."""
    keys = jax.random.split(key, 4)
    W, L, X, D = config.num_weight_sets, config.layers_per_stack, config.num_cross_sets, config.model_dim
    params = {
        "embedding": jax.random.normal(keys[0], (config.vocab_size, D)) * D**-0.5,
        "position_embedding": jax.random.normal(keys[1], (config.max_length, D)) * 0.02,
        "blocks": _stacked(Block, config, keys[2], (W, L)),
        "out_norm": _stacked(RMSNorm, config, keys[2], (W,)),
    }
    if X:
        params["cross"] = _stacked(Cross, config, keys[3], (X, L))
    if config.combine == "linear":
        params["combine"] = jnp.zeros(config.num_stacks).at[-1].set(1.0)
    return params


def abstract_params(config: ModelConfig) -> Params:
    """Return the parameter tree as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def forward(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    remat: str = "none",
    scan_layers: bool = True,
    keep: bool = False,
    attention: str = "auto",
) -> Outputs:
    """Run all stacks over whole rows, one after the other; `readout` and `logits` turn the result into predictions.

    Args:
      config: the model's shape.
      params: as `init_params` returns them.
      tokens_BT: model inputs.
      positions_BT: of each token within its document.
      segment_ids_BT: document of each token within its row.
      remat: "layer" recomputes each layer in the backward pass.
      scan_layers: scan over the layers of a stack instead of unrolling them.
      keep: return keys and values of all attentions: what prefill puts into the caches.
      attention: the kernel that computes attention, as `training.attention` names it.
    """
    x_BTD = constrain(embed(config, params, tokens_BT, positions_BT), "batch", None, None)
    rotary = Rotary(config, positions_BT, x_BTD.dtype)
    attends = row_attends(config, segment_ids_BT, keep, attention)
    run = functools.partial(run_stack, config, x_BTD, rotary, *attends, remat=remat, scan_layers=scan_layers)
    outs, kept, memory_BTD = [], [], None
    for s in range(config.num_stacks):
        if s > 0:
            memory_BTD = shift_memory(outs[-1], config.lag, segment_ids_BT)
        out_BTD, caches = run(*stack_params(config, params, s), memory_BTD)
        outs.append(out_BTD)
        kept.append(caches)
    return Outputs(tuple(outs), tuple(kept))


def stack_params(config: ModelConfig, params: Params, s: int) -> tuple[Params, Params | None, Params]:
    """Return stack s's (blocks [L,...], cross [L,...] or None for stack 0, out_norm)."""
    w, x = weight_sets(config, s)
    at = lambda index, tree: jax.tree.map(lambda leaf: leaf[index], tree)
    return at(w, params["blocks"]), None if x is None else at(x, params["cross"]), at(w, params["out_norm"])


def weight_sets(config: ModelConfig, s: int) -> tuple[int, int | None]:
    """Return which weight set stack s uses, and which of cross-attention (None for stack 0)."""
    if config.shared_weights:
        return 0, 0 if s > 0 else None
    return s, s - 1 if s > 0 else None


def run_stack(
    config: ModelConfig,
    x_BTD: jax.Array,
    rotary: Rotary,
    self_attend: Attend,
    cross_attend: Attend,
    blocks_L: Params,
    cross_L: Params | None,
    out_norm: Params,
    memory_BTD: jax.Array | None,
    *,
    remat: str = "none",
    scan_layers: bool = True,
) -> tuple[jax.Array, Any]:
    """Run one stack from the embedding; return its final-normed residual and the attends' caches [L,...]."""

    def body(x_BTD: jax.Array, weights: tuple[Params, Params | None]) -> tuple[jax.Array, Any]:
        block, cross = build(config, *gather_layer(config, *weights))
        return layer(block, cross, x_BTD, memory_BTD, rotary, self_attend, cross_attend)

    if remat == "layer":
        body = jax.checkpoint(body, prevent_cse=not scan_layers)
    if scan_layers:
        x_BTD, caches = jax.lax.scan(body, x_BTD, (blocks_L, cross_L))
    else:
        per_layer = []
        for l in range(config.layers_per_stack):
            x_BTD, cache = body(x_BTD, jax.tree.map(lambda leaf: leaf[l], (blocks_L, cross_L)))  # noqa: B023
            per_layer.append(cache)
        caches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *per_layer)
    return normalize(config, out_norm, x_BTD), caches


def gather_layer(config: ModelConfig, block: Params, cross: Params | None) -> tuple[Params, Params | None]:
    """Return one layer's weights as its matrix products read them: on a training mesh whole over fsdp.

    Called inside of the scan over layers, so that one layer's weights are whole at a time. Without rematerialisation
    the backward pass keeps those of all layers.
    """

    def whole(part: str, weights: Params) -> Params:
        def gather(path: tuple, weight: jax.Array) -> jax.Array:
            axes = logical_axes(f"{part}/{parameter_path(path)}")[2:]  # of one layer of one weight set
            return _gathered(weight, axes, config.compute_dtype) if "model" in axes else weight

        return jax.tree_util.tree_map_with_path(gather, weights)

    if row_groups() == 1:
        return block, cross
    return whole("blocks", block), None if cross is None else whole("cross", cross)


def gather_embeddings(config: ModelConfig, params: Params) -> Params:
    """Return `params` with whole embeddings, on a training mesh a copy for each group of rows: [groups,V,D].

    Gathered once a step, the tied one in the compute dtype, for lookup and logits. As a group has a copy of its own, the
    gradients of its rows, of the lookup and of every chunk of the cross-entropy, are summed before those of the groups.
    Of one table for all, XLA would sum the gradient, or even gather the logits, in every chunk.
    """
    if row_groups() == 1:
        return params
    dtypes = {"embedding": config.compute_dtype, "position_embedding": params["position_embedding"].dtype}
    return params | {name: _copied(params[name], logical_axes(name), dtype) for name, dtype in dtypes.items()}


def row_groups() -> int:
    """Return into how many groups of devices a training mesh (`jax.set_mesh`) divides the rows; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "fsdp" not in mesh.axis_names:
        return 1
    return math.prod(mesh.shape[axis] for axis in TABLE["batch"].training)


def by_group(function: Callable[..., jax.Array], table: jax.Array, *rows: jax.Array) -> jax.Array:
    """Return function(table, *rows); of a table with a copy for each group, what each group returns for its rows."""
    if table.ndim == 2:
        return function(table, *rows)
    grouped = [leaf.reshape(table.shape[0], -1, *leaf.shape[1:]) for leaf in rows]
    return jax.vmap(function, spmd_axis_name=TABLE["batch"].training)(table, *grouped)


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
    stored, groups = table.dtype, row_groups()

    @jax.custom_vjp
    def copy(table: jax.Array) -> jax.Array:
        table = _in_rows(table.astype(dtype), axes)
        return constrain(jnp.broadcast_to(table, (groups, *table.shape)), "batch", axes[0], None)

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


def row_attends(
    config: ModelConfig, segment_ids_BT: jax.Array, keep: bool = False, attention: str = "auto"
) -> tuple[Attend, Attend]:
    """Return how self- and cross-attention reach earlier positions of a row; `keep` returns keys and values too."""

    def attend(window: int | None, q_BTNH, k_BTKH, v_BTKH):
        if q_BTNH is None:
            return own_slot(v_BTKH, config.num_heads), None
        heads_BTNH = row_attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, window, attention)
        return heads_BTNH, (k_BTKH, v_BTKH) if keep else None

    return functools.partial(attend, None), functools.partial(attend, config.cross_window)


def embed(config: ModelConfig, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Return e = sqrt(D) E[token] + Pos[position] in the compute dtype.

    E is read as the logits read it, rounded to the compute dtype, so that decoding needs one table only; rounding what
    was looked up, and not the table, keeps the sum of its gradient in float32. The rest is float32 (or wider).
    """
    dtype = jnp.dtype(config.compute_dtype)
    e_BTD = look_up(params["embedding"], tokens_BT).astype(dtype).astype(jnp.promote_types(dtype, jnp.float32))
    return (e_BTD * config.model_dim**0.5 + look_up(params["position_embedding"], positions_BT)).astype(dtype)


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


def readout(config: ModelConfig, params: Params, stacks: Sequence[jax.Array]) -> jax.Array:
    """Return y: the last stack's output, or the learned combination of all."""
    if config.combine == "last":
        return stacks[-1]
    return sum(alpha.astype(out.dtype) * out for alpha, out in zip(params["combine"], stacks, strict=True))


def logits(params: Params, y: jax.Array) -> jax.Array:
    """Return y E^T over the vocabulary, in float32 (or wider)."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return jnp.einsum("...D,VD->...V", y, params["embedding"].astype(y.dtype), preferred_element_type=wide)


def build(config: ModelConfig, block: Params, cross: Params | None) -> tuple[Block, Cross | None]:
    """Return the modules of one layer around its parameters."""
    return (
        nnx.merge(_graph(Block, config), nnx.State(block)),
        None if cross is None else nnx.merge(_graph(Cross, config), nnx.State(cross)),
    )


def normalize(config: ModelConfig, out_norm: Params, x_BTD: jax.Array) -> jax.Array:
    """Apply a stack's output norm."""
    return nnx.merge(_graph(RMSNorm, config), nnx.State(out_norm))(x_BTD)


def _stacked(module: type[nnx.Module], config: ModelConfig, key: jax.Array, axes: tuple[int, ...]) -> Params:
    return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(params=key), axes=axes)))


@functools.cache
def _graph(module: type[nnx.Module], config: ModelConfig) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(params=0))))
