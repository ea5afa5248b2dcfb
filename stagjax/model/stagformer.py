"""The model: parameters as one tree, and the forward pass of every variant over rows of tokens.

embedding [V,D]   position_embedding [max_length,D]   blocks {...} [W,L,...]   cross {...} [X,L,...]
out_norm [W,D]    combine [P] (only with combine="linear")
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from stagjax.config import ModelConfig
from stagjax.model.attention import own_slot, shift_memory
from stagjax.model.gathering import gather_layer, look_up
from stagjax.model.kernels import row_attention
from stagjax.model.layers import Attend, Block, Cross, RMSNorm, Rotary, layer
from stagjax.sharding import constrain

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
    return jax.tree.map(lambda leaf: leaf, _abstract_params(config))


@functools.lru_cache
def _abstract_params(config: ModelConfig) -> Params:
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
        block, cross = build(config, *gather_layer(config.compute_dtype, *weights))
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
