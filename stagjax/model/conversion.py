"""From one model's parameters to another's: a baseline's layers dealt to stacks, more positions, more ids.

What a stack has that a baseline has not is initialised as for training, with `cross_out` zero: at first every stack
computes what its own layers compute, and gradients reach the rest through `cross_out`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stagjax.config import Config, ModelConfig
from stagjax.config_rules import COSINE, divisors
from stagjax.errors import UserError, unknown
from stagjax.fingerprint import describe
from stagjax.model.stagformer import Params, abstract_params, init_params

FREE = ("cross_attention", "cross_window", "lag", "combine", "max_length", "vocab_size", "compute_dtype")
"""Fields of the model that a conversion may set: no trained parameter loses its meaning by them."""


def contiguous(num_stacks: int, layers_per_stack: int) -> list[list[int]]:
    """Return for each stack which layers of a baseline it gets: neighbours, as the paper cuts a model into stacks."""
    return [list(range(s * layers_per_stack, (s + 1) * layers_per_stack)) for s in range(num_stacks)]


def interleaved(num_stacks: int, layers_per_stack: int) -> list[list[int]]:
    """Return for each stack every `num_stacks`-th layer of a baseline: stack s gets s, s + P, ..."""
    return [list(range(s, num_stacks * layers_per_stack, num_stacks)) for s in range(num_stacks)]


LAYERS = {
    "contiguous": contiguous,
    "contiguous_reversed": lambda P, L: contiguous(P, L)[::-1],
    "interleaved": interleaved,
    "interleaved_reversed": lambda P, L: interleaved(P, L)[::-1],
}
"""Which layers of a baseline each stack gets. Reversed, the last stack, which predicts, gets the first layer."""

DEFAULT_LAYERS = "interleaved_reversed"
"""The lowest loss at the start of the four, and after fine-tuning of the three tried (docs/checkpoints.md)."""


def convert_config(
    config: Config, to: str | None = None, num_stacks: int = 2, changes: Mapping[str, Any] | None = None
) -> Config:
    """Return the config of the new model.

    Args:
      config: of a baseline, or of any model if `to` is None.
      to: "separate" or "shared"; None keeps the stacks as they are.
      num_stacks: P of the new model.
      changes: fields of the model among `FREE`, by name.

    Raises:
      UserError: not a baseline, layers that do not divide, a field that a conversion cannot set.
    """
    model = config.model
    fields = dict(changes or {})
    for name in fields:
        if name not in FREE:
            raise unknown("field of the model for a conversion", f"model.{name}", [f"model.{field}" for field in FREE])
    if to is not None:
        fields |= _stacks(model, to, num_stacks)
    if not fields:
        raise UserError("a conversion without a change is a copy; give --to, or fields of the model: --config.model...")
    mesh = dataclasses.replace(config.mesh, stack=1)
    # By way of plain data, which checks types too.
    training = dataclasses.replace(config.training, schedule=COSINE)  # a new run, whatever build trained the old one
    new = dataclasses.replace(config, training=training, mesh=mesh)
    converted = Config.from_dict(new.to_dict() | {"model": vars(model) | fields})
    _keeps_all(model, converted.model)
    return converted


def check_layers(layers: str) -> None:
    """Raise `UserError` where `layers` is no name in `LAYERS`."""
    if layers not in LAYERS:
        raise unknown("--layers", layers, LAYERS)


def convert_params(
    source: ModelConfig, params: Params, target: ModelConfig, layers: str = DEFAULT_LAYERS, seed: int = 0
) -> Params:
    """Return the parameters of `target`, a model that `convert_config` made from `source`.

    Args:
      source: the model's shape.
      params: its parameters.
      target: the new model's shape.
      layers: which layers of a baseline separate stacks get, a name in `LAYERS`.
      seed: of cross-attention and of new position rows.

    Raises:
      UserError: `layers` is no such name.
    """
    check_layers(layers)
    new = jax.jit(functools.partial(init_params, target))(jax.random.key(seed))
    new["embedding"] = _more_ids(params["embedding"], target.vocab_size)
    known = source.max_length
    new["position_embedding"] = new["position_embedding"].at[:known].set(params["position_embedding"])
    if source.num_weight_sets == target.num_weight_sets:
        new["blocks"], new["out_norm"] = params["blocks"], params["out_norm"]
    else:
        dealt = jnp.asarray(LAYERS[layers](target.num_stacks, target.layers_per_stack))
        new["blocks"] = jax.tree.map(lambda leaf_1L: leaf_1L[0, dealt], params["blocks"])
        new["out_norm"] = jax.tree.map(lambda leaf_1: leaf_1[jnp.zeros(target.num_stacks, int)], params["out_norm"])
    if source.num_cross_sets:
        new["cross"] = params["cross"]
    elif target.num_cross_sets:
        new["cross"]["attention"]["out"] = jnp.zeros_like(new["cross"]["attention"]["out"])
    if source.combine == target.combine == "linear" and source.num_stacks == target.num_stacks:
        new["combine"] = params["combine"]
    return new


def _stacks(model: ModelConfig, to: str, num_stacks: int) -> dict[str, Any]:
    if to not in ("separate", "shared"):
        raise unknown("--to", to, ("separate", "shared"))
    if model.num_stacks > 1:
        raise UserError(
            f"--to={to}: the model has {model.num_stacks} stacks already; only a baseline can be cut into stacks"
        )
    if num_stacks < 2:
        raise UserError(f"--stacks={num_stacks} is below 2; a model of one stack is the baseline")
    if to == "shared":
        return {"num_stacks": num_stacks, "shared_weights": True}
    total = model.layers_per_stack
    if total % num_stacks:
        usable = ", ".join(str(divisor) for divisor in divisors(total) if divisor > 1)
        raise UserError(
            f"--stacks={num_stacks} does not divide the {total} layers of the baseline; use {usable}, or --to=shared"
        )
    return {"num_stacks": num_stacks, "layers_per_stack": total // num_stacks}


def _keeps_all(source: ModelConfig, target: ModelConfig) -> None:
    """Raise `UserError` where what is trained has no place in the new model, or trained stacks lack something."""
    for name in ("max_length", "vocab_size"):
        had, has = getattr(source, name), getattr(target, name)
        if has < had:
            raise UserError(f"model.{name}={has} is below the {had} that are trained; a conversion drops no rows")
    before, after = (set(describe(abstract_params(model))) for model in (source, target))
    added = after - before - {"combine"} if source.num_stacks > 1 else set()
    if changed := (before - after) | added:
        raise UserError(
            f"the parameters {', '.join(sorted(changed))} are not in both models, but trained stacks keep what they "
            "have; leave model.cross_window, model.cross_attention and model.combine as they are"
        )


def _more_ids(embedding_VD: jax.Array, vocab_size: int) -> jax.Array:
    """Return the embedding with rows added that are the mean of all.

    By Jensen's inequality such an id weighs at most a V-th of the trained ids together, whatever y is; a random row may
    outweigh them all (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    """
    extra = vocab_size - embedding_VD.shape[0]
    return jnp.concatenate([embedding_VD, jnp.tile(embedding_VD.mean(axis=0), (extra, 1))])
