"""Tiny models of every kind, for tests that must hold for all variants."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from stagjax.config import ModelConfig
from stagjax.model import stagformer

TINY = ModelConfig(
    vocab_size=61,
    model_dim=16,
    num_heads=4,
    num_kv_heads=4,
    head_dim=4,
    ff_dim=24,
    layers_per_stack=2,
    num_stacks=2,
    max_length=64,
)


def tiny(**changes) -> ModelConfig:
    """Return the tiny separate-weights model with some fields changed."""
    config = dataclasses.replace(TINY, **changes)
    config.check()
    return config


VARIANTS = {
    "baseline": tiny(num_stacks=1),
    "separate": tiny(),
    "shared": tiny(shared_weights=True),
    "separate_3": tiny(num_stacks=3),
    "separate_3_linear": tiny(num_stacks=3, combine="linear"),
    "shared_4_linear": tiny(num_stacks=4, shared_weights=True, combine="linear"),
    "window_5": tiny(cross_window=5),
    "window_1": tiny(cross_window=1),
    "window_1_parallel": tiny(cross_window=1, cross_attention="parallel"),
    "parallel": tiny(cross_attention="parallel"),
    "parallel_window_3_shared": tiny(cross_attention="parallel", cross_window=3, shared_weights=True, num_stacks=3),
    "lag_0": tiny(lag=0),
    "lag_0_window_3_linear": tiny(lag=0, cross_window=3, num_stacks=3, combine="linear"),
    "lag_2": tiny(lag=2),
    "lag_2_window_4_shared": tiny(lag=2, cross_window=4, shared_weights=True, num_stacks=3),
    "grouped_query": tiny(num_kv_heads=2),
    "multi_query_window_1": tiny(num_kv_heads=1, cross_window=1),
    "everything": tiny(
        num_stacks=4, num_kv_heads=2, cross_window=2, lag=2, combine="linear", cross_attention="parallel"
    ),
}

RECURRENT = {name: config for name, config in VARIANTS.items() if config.shared_weights} | {
    "shared_window_1": tiny(shared_weights=True, cross_window=1),
    "shared_parallel_grouped": tiny(shared_weights=True, cross_attention="parallel", num_kv_heads=2),
    "shared_lag_2_linear": tiny(shared_weights=True, lag=2, num_stacks=3, combine="linear"),
}


def params_of(config: ModelConfig, seed: int = 0) -> dict:
    """Return random parameters of the usual scale; norms and combination are not 1, so that they matter."""
    draw = np.random.default_rng(seed)
    shapes = stagformer.abstract_params(config)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(0.5 if leaf.ndim < 2 else 0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def tokens_of(config: ModelConfig, batch: int, length: int, seed: int = 0) -> jax.Array:
    """Return random token ids [batch, length]."""
    return jnp.asarray(np.random.default_rng(seed + 99).integers(0, config.vocab_size, (batch, length)), jnp.int32)


def every_combination() -> list[ModelConfig]:
    """Return all combinations of the features of the spec, one tiny model each."""
    axes = {
        "num_stacks": (1, 2, 3),
        "shared_weights": (False, True),
        "cross_attention": ("sequential", "parallel"),
        "cross_window": (None, 1, 3),
        "lag": (0, 1, 2),
        "combine": ("last", "linear"),
        "num_kv_heads": (4, 2),
    }
    return [tiny(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
