"""What an experiment may hold: one rule a field, in one table, and the rules that tie fields together."""

import dataclasses
import math
from typing import Any

from stagjax.errors import UserError
from stagjax.rules import COUNT, COUNT_OR_NONE, ROW_LENGTH, SEED, VALIDATION_PERCENT, Flag, Maybe, Number, Rule, Text

COSINE, COSINE_FROM_ZERO = "cosine", "cosine_from_zero"

_BETA = Number(float, 0, 1, open_high=True)
_POLICIES = ("stop", "skip", "rollback")

FIELDS: dict[str, Rule] = {
    "model.vocab_size": COUNT,
    "model.model_dim": COUNT,
    "model.num_heads": COUNT,
    "model.num_kv_heads": COUNT,
    "model.head_dim": COUNT,
    "model.ff_dim": COUNT,
    "model.layers_per_stack": COUNT,
    "model.num_stacks": COUNT,
    "model.shared_weights": Flag(),
    "model.cross_attention": Text(("sequential", "parallel")),
    "model.cross_window": Maybe(COUNT),
    "model.lag": COUNT_OR_NONE,
    "model.combine": Text(("last", "linear")),
    "model.max_length": COUNT,
    "model.rope_base": Number(float, 1, hint="the usual value is 10000"),
    "model.norm_eps": Number(float, 0, 1, open_low=True, hint="the usual value is 1e-6"),
    "model.compute_dtype": Text(("float32", "bfloat16", "float64")),
    "data.source": Text(("stdlib", "text", "jsonl", "prepared")),
    "data.path": Maybe(Text(hint="the path of a directory")),
    "data.vocabulary": Text(hint="'bytes', 'prepared' or the path of a model"),
    "data.row_length": ROW_LENGTH,
    "data.validation_percent": VALIDATION_PERCENT,
    "training.steps": COUNT,
    "training.global_batch": COUNT,
    "training.learning_rate": Number(float, 0),
    "training.warmup_steps": COUNT_OR_NONE,
    "training.final_learning_rate": Number(float, 0, 1, hint="a share of the peak"),
    "training.schedule": Text((COSINE, COSINE_FROM_ZERO)),
    "training.beta1": _BETA,
    "training.beta2": _BETA,
    "training.epsilon": Number(float, 0, 1, open_low=True, hint="the usual value is 1e-8"),
    "training.weight_decay": Number(float, 0),
    "training.clip_norm": Number(float, 0, open_low=True, hint="the usual value is 1"),
    "training.seed": SEED,
    "training.accumulation": COUNT,
    "training.remat": Text(("none", "layer")),
    "training.scan_layers": Flag(),
    "training.attention": Text(("auto", "xla", "splash", "cudnn")),
    "training.microbatches": Maybe(COUNT),
    "training.loss_chunks": COUNT,
    "training.log_every": COUNT,
    "training.validate_every": COUNT,
    "training.validation_rows": Maybe(COUNT),
    "training.checkpoint_every": COUNT,
    "training.keep_last": COUNT,
    "training.keep_every": Maybe(COUNT),
    "training.nonfinite": Text(_POLICIES),
    "training.spikes": Text(("none", *_POLICIES)),
    "training.spike_threshold": Number(float, 0, open_low=True, hint="the usual values are 6 to 15"),
    "training.max_recoveries": COUNT,
    "mesh.data": COUNT,
    "mesh.fsdp": Maybe(COUNT),
    "mesh.stack": COUNT,
    "mesh.tensor": COUNT,
}


def check_fields(name: str, section: Any) -> None:
    """Raise `UserError` for the first field of a section whose rule its value breaks."""
    for field in dataclasses.fields(section):
        FIELDS[f"{name}.{field.name}"].check(f"{name}.{field.name}", getattr(section, field.name))


def check_model(model: Any) -> None:
    """Raise `UserError` where fields of a model do not fit together."""
    if model.num_heads % model.num_kv_heads:
        raise UserError(
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}; "
            f"use one of {_divisors_of(model.num_heads)}"
        )
    if model.head_dim % 2:
        raise UserError(
            f"model.head_dim={model.head_dim} is odd, but the rotary embedding pairs the halves of a head; "
            f"use {model.head_dim + 1}"
        )


def check_data(data: Any) -> None:
    """Raise `UserError` where fields of the data do not fit together."""
    if data.vocabulary == "prepared" and data.source != "prepared":
        raise UserError(
            f"data.vocabulary='prepared' is that of prepared data, but data.source={data.source!r}; use "
            "data.source='prepared', 'bytes' or the path of a model"
        )


def check_training(training: Any) -> None:
    """Raise `UserError` where fields of the training do not fit together."""
    if training.warmup_steps > training.steps:
        raise UserError(
            f"training.warmup_steps={training.warmup_steps} is over training.steps={training.steps}; "
            "lower it or train longer"
        )
    if training.learning_rate * training.weight_decay > 1:
        raise UserError(
            f"training.weight_decay={training.weight_decay} times training.learning_rate={training.learning_rate} is "
            "over 1: a step would take away more of a parameter than there is; lower one of them"
        )
    if training.global_batch % training.accumulation:
        raise UserError(
            f"training.global_batch={training.global_batch} does not divide into "
            f"training.accumulation={training.accumulation} parts; use one of {_divisors_of(training.global_batch)}"
        )


def check_together(config: Any) -> None:
    """Raise `UserError` where the sections of an experiment do not fit together."""
    model, data, training, mesh = config.model, config.data, config.training, config.mesh
    if data.row_length > model.max_length:
        raise UserError(
            f"data.row_length={data.row_length} is over model.max_length={model.max_length}; "
            "shorten the rows or lengthen the model"
        )
    if model.lag >= data.row_length:
        raise UserError(
            f"model.lag={model.lag} is beyond the row, data.row_length={data.row_length}: no position would ever see "
            f"the stack below; use at most {data.row_length - 1}"
        )
    if mesh.stack not in (1, model.num_stacks):
        raise UserError(
            f"mesh.stack={mesh.stack} is neither 1 nor model.num_stacks={model.num_stacks}: a "
            "pipeline has one slice for each stack; use one of them, and mesh.fsdp for the other devices"
        )
    if data.row_length % training.loss_chunks:
        raise UserError(
            f"training.loss_chunks={training.loss_chunks} does not divide "
            f"data.row_length={data.row_length}; use one of {_divisors_of(data.row_length)}"
        )


def divisors(number: int) -> list[int]:
    """Return the divisors of `number` in ascending order."""
    low = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return low + [number // divisor for divisor in reversed(low) if divisor * divisor != number]


def _divisors_of(number: int) -> str:
    return ", ".join(map(str, divisors(number)))
