"""What a model costs: parameters, FLOPs, cache bytes and memory, from its shape alone.

FLOPs count 2 for a multiply-add, matrix products with logits, causal attention at half, no rematerialisation; training
is 3 times the forward pass (spec: Conventions).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stagjax.config import Config, ModelConfig
from stagjax.model.stagformer import abstract_params


class Parameters(NamedTuple):
    """Parameter counts: everything, one stack's own layers and norm, and all cross-attention together."""

    total: int
    per_stack: int
    cross_attention: int
    embeddings: int


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of a model without allocating them."""
    params = abstract_params(config)
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return Parameters(
        total=count(params),
        per_stack=count((params["blocks"], params["out_norm"])) // config.num_weight_sets,
        cross_attention=count(params.get("cross", ())),
        embeddings=count((params["embedding"], params["position_embedding"])),
    )


def forward_flops(config: ModelConfig, context: int) -> float:
    """Return FLOPs per token of a forward pass over rows of `context` tokens, each a single document."""
    window = config.cross_window or context
    attended = min(window, context) * (1 - min(window, context) / (2 * context))
    return _flops(config, config.num_stacks, self_slots=context / 2, cross_slots=attended)


def training_flops(config: ModelConfig, context: int) -> float:
    """Return FLOPs per token of a training step: three forward passes."""
    return 3 * forward_flops(config, context)


def decode_flops(config: ModelConfig, context: int, recurrent: bool = False) -> float:
    """Return FLOPs of decoding one token of one row whose caches hold `context` slots; recurrent runs one pass."""
    return _flops(
        config, 1 if recurrent else config.num_stacks, context, min(config.cross_window or context, context), recurrent
    )


def cache_bytes(config: ModelConfig, context: int, recurrent: bool = False) -> dict[str, int]:
    """Return bytes of keys and values of one row of `context` slots: {"self": ..., "cross": ...}."""
    slot = 2 * config.num_kv_heads * config.head_dim * jnp.dtype(config.compute_dtype).itemsize
    stacks = 1 if recurrent else config.num_stacks
    cross_stacks = 1 if recurrent else config.num_stacks - 1
    # Window 1 reads the handed-over output itself: nothing is cached.
    cross_slots = 0 if config.cross_window == 1 else min(config.cross_window or context, context)
    return {
        "self": stacks * config.layers_per_stack * context * slot,
        "cross": cross_stacks * config.layers_per_stack * cross_slots * slot,
    }


def training_memory(config: Config) -> dict[str, int]:
    """Estimate the bytes that a training step needs on one device without sharding, with attention in plain XLA.

    Parameters, gradients and the two Adam moments are float32 and exact. Activations are what the backward pass reads
    and one and a half layers of what it computes with; logits are a chunk of them and of its gradient. Within a factor
    of 1.5 of what XLA's CPU compiler allocates for the models of experiments/stdlib.py (a test compares them).
    """
    model, training = config.model, config.training
    total = count_parameters(model).total
    T = config.data.row_length
    tokens = training.global_batch // training.accumulation * T
    D, NH, KH = model.model_dim, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim

    def attention(window: int | None) -> float:
        scores = 0 if window == 1 else model.num_heads * min(T, window or T, T / 2 + 64)
        return 2 * D + 3 * NH + 4 * KH + scores

    layer = attention(None) + 5 * D + 6 * model.ff_dim
    cross = attention(model.cross_window) + D
    layers, cross_layers = model.num_stacks * model.layers_per_stack, (model.num_stacks - 1) * model.layers_per_stack
    working = 1.5 * (layer + (cross if cross_layers else 0))
    kept = layers * D if training.remat == "layer" else layers * layer + cross_layers * cross
    return {
        "parameters": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": int(tokens * jnp.dtype(model.compute_dtype).itemsize * (kept + working)),
        "logits": 2 * 4 * (tokens // training.loss_chunks) * model.vocab_size,
    }


def _flops(config: ModelConfig, passes: int, self_slots: float, cross_slots: float, recurrent: bool = False) -> float:
    D, F, H = config.model_dim, config.ff_dim, config.head_dim
    NH, KH = config.num_heads * H, config.num_kv_heads * H
    value_out = 2 * (D * KH + NH * D)
    query_key = 2 * (D * NH + D * KH)
    self_attention = value_out + query_key + 4 * NH * self_slots
    cross = value_out if config.cross_window == 1 else value_out + query_key + 4 * NH * cross_slots
    cross_passes = 1 if recurrent else passes - 1
    layers = config.layers_per_stack * (passes * (self_attention + 6 * D * F) + cross_passes * cross)
    return layers + 2 * D * config.vocab_size
