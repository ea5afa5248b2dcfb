"""The leaf modules: parameters and the maths of one layer, for training and for decoding alike.

Modules are used as pytrees: `nnx.split` once after initialisation, then plain JAX on the parameters. How attention
reaches earlier positions (a kernel over rows, a cache) is passed in as a function, so the layer is written once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stagjax.config import ModelConfig
from stagjax.sharding import constrain

# (q_BTNH, k_BTKH, v_BTKH) -> (heads_BTNH, cache). Query and key are None where the window is 1: no softmax is left.
Attend = Callable[[jax.Array | None, jax.Array | None, jax.Array], tuple[jax.Array, Any]]


# Leading axes of every parameter of a module: (W, L) in a checkpoint, none where one layer is applied.
Axes = tuple[int, ...]


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a multiplicative scale; computed in float32 (or wider), returned in x's dtype."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axes: Axes = ()):
        self.epsilon = config.norm_eps
        self.scale = nnx.Param(jnp.ones((*axes, config.model_dim)))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return x / rms(x) * scale."""
        wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
        y_BTD = x_BTD.astype(wide)
        mean_square_BT1 = jnp.mean(jnp.square(y_BTD), axis=-1, keepdims=True)
        y_BTD = y_BTD * jax.lax.rsqrt(mean_square_BT1 + self.epsilon) * self.scale.astype(wide)
        return y_BTD.astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Projections of one attention, heads-major: query [D,N,H], key and value [D,K,H], out [N,H,D].

    Without `scores` (cross-attention of window 1) there is neither query nor key.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axes: Axes = (), scores: bool = True):
        D, N, K, H = config.model_dim, config.num_heads, config.num_kv_heads, config.head_dim
        if scores:
            self.query = nnx.Param(_normal(rngs, (*axes, D, N, H), fan_in=D))
            self.key = nnx.Param(_normal(rngs, (*axes, D, K, H), fan_in=D))
        self.scores = scores
        self.value = nnx.Param(_normal(rngs, (*axes, D, K, H), fan_in=D))
        self.out = nnx.Param(_normal(rngs, (*axes, N, H, D), fan_in=N * H * 3 * config.layers_per_stack))

    def __call__(self, x_BTD: jax.Array, source_BTD: jax.Array, rotary: "Rotary", attend: Attend) -> tuple[Any, Any]:
        """Attend from `x` to `source` (x itself, or the memory); return (y_BTD, cache)."""
        q_BTNH = k_BTKH = None
        if self.scores:
            q_BTNH = rotary(constrain(project(x_BTD, self.query[...]), "batch", None, "heads", None))
            k_BTKH = rotary(constrain(project(source_BTD, self.key[...]), "batch", None, "kv_heads", None))
        v_BTKH = constrain(project(source_BTD, self.value[...]), "batch", None, "kv_heads", None)
        heads_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH)
        heads_BTNH = constrain(heads_BTNH, "batch", None, "heads", None)
        return constrain(project(heads_BTNH, self.out[...], axes=2), "batch", None, None), cache


class GeGLU(nnx.Module):
    """Gated MLP: down(gelu(gate(x)) * up(x)), gelu in its tanh approximation."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axes: Axes = ()):
        D, F = config.model_dim, config.ff_dim
        self.gate = nnx.Param(_normal(rngs, (*axes, D, F), fan_in=D))
        self.up = nnx.Param(_normal(rngs, (*axes, D, F), fan_in=D))
        self.down = nnx.Param(_normal(rngs, (*axes, F, D), fan_in=F * 3 * config.layers_per_stack))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return the MLP's output, [B,T,D]."""
        gate_BTF = constrain(project(x_BTD, self.gate[...]), "batch", None, "hidden")
        up_BTF = constrain(project(x_BTD, self.up[...]), "batch", None, "hidden")
        hidden_BTF = jax.nn.gelu(gate_BTF, approximate=True) * up_BTF
        return constrain(project(hidden_BTF, self.down[...]), "batch", None, None)


class Block(nnx.Module):
    """What every layer of every stack has: self-attention and MLP, each behind its norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axes: Axes = ()):
        self.self_norm = RMSNorm(config, rngs=rngs, axes=axes)
        self.self_attention = Attention(config, rngs=rngs, axes=axes)
        self.mlp_norm = RMSNorm(config, rngs=rngs, axes=axes)
        self.mlp = GeGLU(config, rngs=rngs, axes=axes)


class Cross(nnx.Module):
    """What a layer of a stack s > 0 has besides: attention to the memory, with a norm of its own where one is read.

    Window 1 has no query to normalise, and parallel cross-attention shares the norm of self-attention.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axes: Axes = ()):
        scores = config.cross_window != 1
        if scores and config.cross_attention == "sequential":
            self.norm = RMSNorm(config, rngs=rngs, axes=axes)
        self.attention = Attention(config, rngs=rngs, axes=axes, scores=scores)


class Rotary:
    """Rotary position embedding: dimension j of a head's first half is paired with j of the second (RoFormer)."""

    def __init__(self, config: ModelConfig, positions_BT: jax.Array, dtype: jnp.dtype):
        half = config.head_dim // 2
        wide = jnp.promote_types(dtype, jnp.float32)
        frequency_H = config.rope_base ** (-jnp.arange(half, dtype=wide) / half)
        angle_BT1H = positions_BT.astype(wide)[..., None, None] * frequency_H
        self.cos_BT1H, self.sin_BT1H = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """Rotate every head of `x` to its position; computed in float32 (or wider)."""
        first, second = jnp.split(x_BTNH.astype(self.cos_BT1H.dtype), 2, axis=-1)
        rotated = (first * self.cos_BT1H - second * self.sin_BT1H, second * self.cos_BT1H + first * self.sin_BT1H)
        return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)


def project(x: jax.Array, weight: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last `axes` dimensions of x with the first of `weight`, in x's dtype.

    One plain matrix product over all rows and positions: with the dimensions kept apart, XLA:CPU transposes whole
    activations for the gradient of the weight (1.36 times the CPU time of a training step).
    """
    kept, contracted = x.shape[: x.ndim - axes], math.prod(weight.shape[:axes])
    y = x.reshape(-1, contracted) @ weight.astype(x.dtype).reshape(contracted, -1)
    return y.reshape(*kept, *weight.shape[axes:])


def layer(
    block: Block,
    cross: Cross | None,
    x_BTD: jax.Array,
    memory_BTD: jax.Array | None,
    rotary: Rotary,
    self_attend: Attend,
    cross_attend: Attend | None,
) -> tuple[jax.Array, tuple[Any, Any]]:
    """Apply one layer: self-attention, cross-attention where the stack has it, MLP (spec: Definition).

    Args:
      block: the layer's own modules.
      cross: its cross-attention, None in stack 0.
      x_BTD: residual stream.
      memory_BTD: the previous stack's outputs, already shifted by the lag: slot t is read at position t.
      rotary: of the positions of x, which are those of the memory's slots.
      self_attend: how self-attention reaches earlier positions.
      cross_attend: the same for the memory.

    Returns:
      The residual stream after the layer, and the caches that the two attends returned.
    """
    normed_BTD = block.self_norm(x_BTD)
    delta_BTD, self_cache = block.self_attention(normed_BTD, normed_BTD, rotary, self_attend)
    x_BTD = x_BTD + delta_BTD
    cross_cache = None
    if cross is not None:
        # Sequential: the query stream is normed anew. Parallel: it is the stream that self-attention read.
        query_BTD = cross.norm(x_BTD) if hasattr(cross, "norm") else normed_BTD
        delta_BTD, cross_cache = cross.attention(query_BTD, memory_BTD, rotary, cross_attend)
        x_BTD = x_BTD + delta_BTD
    x_BTD = x_BTD + block.mlp(block.mlp_norm(x_BTD))
    return x_BTD, (self_cache, cross_cache)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    return jax.random.normal(rngs.params(), shape) * fan_in**-0.5
