"""The one schema of an experiment: frozen dataclasses, to and from plain data.

Everything that can be wrong with an experiment is found here, by `config_rules`, before a device is touched.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from stagjax import config_rules
from stagjax.config_rules import COSINE, COSINE_FROM_ZERO, FIELDS
from stagjax.errors import UserError, unknown


def free(default: Any) -> Any:
    """Declare a field that a resumed run may change: it does not alter which model comes out of healthy steps."""
    return dataclasses.field(default=default, metadata={"free": True})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a StagFormer. The variants of the paper differ in these values only, never in code.

    Attributes:
      vocab_size: V, rows of the tied embedding; at least the vocabulary's size.
      model_dim: D.
      num_heads: N.
      num_kv_heads: K, a divisor of `num_heads` (grouped-query attention).
      head_dim: H, even (RoPE pairs its halves).
      ff_dim: F, width of the GeGLU.
      layers_per_stack: L.
      num_stacks: P; with shared weights the number of passes. 1 is the baseline.
      shared_weights: all passes use one set of layers (paper section 3.1).
      cross_attention: "sequential" after self-attention, or "parallel" to it (one all-reduce a layer less).
      cross_window: memory slots that a query sees, None for all (paper section 3.3).
      lag: positions by which the memory is shifted; 0 is the control without staggering.
      combine: logits read the "last" stack, or a learned "linear" combination of all (paper section 3.4).
      max_length: rows of the position embedding: the longest sequence.
      rope_base: base wavelength of the rotary embedding.
      norm_eps: added to the mean square in RMSNorm.
      compute_dtype: of activations and matrix products; parameters stay float32.
    """

    vocab_size: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ff_dim: int
    layers_per_stack: int
    num_stacks: int = 1
    shared_weights: bool = False
    cross_attention: str = "sequential"
    cross_window: int | None = None
    lag: int = 1
    combine: str = "last"
    max_length: int = 1280
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    compute_dtype: str = "float32"

    @property
    def num_weight_sets(self) -> int:
        """W: weight sets of the stacks."""
        return 1 if self.shared_weights else self.num_stacks

    @property
    def num_cross_sets(self) -> int:
        """X: weight sets of cross-attention; set x serves stack x+1."""
        if self.num_stacks == 1:
            return 0
        return 1 if self.shared_weights else self.num_stacks - 1

    def check(self) -> None:
        """Raise `UserError` where a value or a combination of values has no meaning."""
        config_rules.check_fields("model", self)
        config_rules.check_model(self)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, with which vocabulary, in rows of which length.

    Attributes:
      source: "stdlib" (the standard library of the running Python), "text" (one document a file), "jsonl", or
        "prepared" (rows made by `stagjax data prepare`).
      path: directory of the source; None for "stdlib".
      vocabulary: "bytes", the path of a SentencePiece model, or "prepared" for the one that made the rows.
      row_length: target ids in a packed row; at most `model.max_length`.
      validation_percent: share of documents, chosen by the hash of their name, that training never sees; what is
        prepared has been divided already.
    """

    source: str = "stdlib"
    path: str | None = None
    vocabulary: str = "bytes"
    row_length: int = 256
    validation_percent: int = 5

    def check(self) -> None:
        """Raise `UserError` for values outside the schema (files are looked at when they are opened)."""
        config_rules.check_fields("data", self)
        config_rules.check_data(self)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, schedule, and how often things happen. The fields declared `free` may change when a run resumes.

    Attributes:
      steps: optimizer steps; the cosine ends with the last one.
      global_batch: rows in one optimizer step, over all hosts and all `accumulation` parts.
      learning_rate: peak, that of the last step of the warm-up (without one of the first step).
      warmup_steps: of linear warm-up.
      final_learning_rate: as a share of the peak, that of the last step (unless the run is all warm-up).
      schedule: "cosine"; or "cosine_from_zero", by which runs go on that an earlier build began: all its rates come a
        step later, so that the first step changes nothing and the last one is short of `final_learning_rate`.
      beta1: AdamW.
      beta2: AdamW.
      epsilon: AdamW.
      weight_decay: decoupled, on matrices other than the two embeddings.
      clip_norm: global norm to which gradients are clipped.
      seed: of initialisation and of the order of rows.
      accumulation: parts into which a global batch is cut, one after the other, to save memory.
      remat: "none", or "layer" to recompute each layer's activations in the backward pass, and on a mesh to gather its
        weights there once more instead of keeping all layers' whole.
      scan_layers: scan over layers (compiles once a stack) instead of unrolling them.
      attention: kernel of attention: "splash" (TPU), "cudnn" (GPU), "xla", or "auto" by what is compiled for.
      microbatches: into which the rows of a part are cut where stacks are pipelined (`mesh.stack`); they go through the
        slices one behind the other. None for as many as divide the rows of a device, at most 4 for each stack.
      loss_chunks: parts of a row in which the cross-entropy is computed, so that not all logits are alive at once.
      log_every: steps between metrics.
      validate_every: steps between validations.
      validation_rows: rows of the validation set to use, None for all.
      checkpoint_every: steps between checkpoints; each is validated first.
      keep_last: newest checkpoints kept, besides the best one.
      keep_every: steps between checkpoints that are kept for ever, None for none; one is saved at each of them,
        whatever `checkpoint_every` is.
      nonfinite: what a loss or gradient norm that is not finite does: "stop" the run, "skip" the step's update, or
        "rollback" to the newest checkpoint and go on with the batches behind those read since. Free, like the next
        three, because a run that stopped goes on by changing them.
      spikes: what a finite loss or gradient norm far above the recent ones does: "none" for nothing, or as `nonfinite`.
      spike_threshold: how far: robust standard deviations above the median of recent steps (`stagjax.training.guard`).
      max_recoveries: skips in a row, or rollbacks to one checkpoint, that are borne; one more stops the run.
    """

    steps: int = 1000
    global_batch: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.1
    schedule: str = COSINE
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0
    accumulation: int = free(1)
    remat: str = free("none")
    scan_layers: bool = free(True)
    attention: str = free("auto")
    microbatches: int | None = free(None)
    loss_chunks: int = free(1)
    log_every: int = free(10)
    validate_every: int = free(100)
    validation_rows: int | None = free(None)
    checkpoint_every: int = free(100)
    keep_last: int = free(2)
    keep_every: int | None = free(None)
    nonfinite: str = free("stop")
    spikes: str = free("none")
    spike_threshold: float = free(10.0)
    max_recoveries: int = free(10)

    def check(self) -> None:
        """Raise `UserError` for values without meaning and batches that do not divide."""
        config_rules.check_fields("training", self)
        config_rules.check_training(self)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes of the training mesh. A resumed run may change all of them: batches stay the same.

    Attributes:
      data: groups that hold a copy of the parameters each.
      fsdp: devices among which parameters and optimizer state are divided; None for all that the others leave.
      stack: 1, or `model.num_stacks` to pipeline the stacks: each has a slice of the devices, which holds the layers of
        that stack only and works on another of `training.microbatches` than the other slices do.
      tensor: devices among which heads, hidden units and the vocabulary are divided.
    """

    data: int = free(1)
    fsdp: int | None = free(None)
    stack: int = free(1)
    tensor: int = free(1)

    def check(self) -> None:
        """Raise `UserError` for sizes below one."""
        config_rules.check_fields("mesh", self)


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment, resolved: what the workdir stores and what a resumed run is compared with."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        """Raise `UserError` for the first rule that a field or a pair of fields breaks."""
        for section in (self.model, self.data, self.training, self.mesh):
            section.check()
        config_rules.check_together(self)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the config as plain nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Config":
        """Build and check a config from nested mappings.

        Where they do not name `training.schedule`, an earlier build stored them, which had but one.

        Raises:
          UserError: unknown section or field (the nearest is named), a missing field, a wrong type, a broken rule.
        """
        sections = {}
        types = typing.get_type_hints(cls)
        if not isinstance(tree, Mapping):
            raise UserError(f"a config is a table of sections, not {type(tree).__name__}; it has {', '.join(types)}")
        for name, value in tree.items():
            if name not in types:
                raise unknown("config section", str(name), types)
            if name == "training" and isinstance(value, Mapping):
                value = {"schedule": COSINE_FROM_ZERO} | value
            sections[name] = _section(types[name], name, value)
        for field in dataclasses.fields(cls):
            name = field.name
            if name not in sections and field.default is dataclasses.MISSING:
                raise UserError(f"config section {name!r} is missing; a config has {', '.join(types)}")
        config = cls(**sections)
        config.check()
        return config


def config_differences(stored: Config, wanted: Config) -> list[str]:
    """Return "field: stored -> wanted" for every field that a resumed run may not change but does."""
    lines = []
    for section in dataclasses.fields(Config):
        before, after = getattr(stored, section.name), getattr(wanted, section.name)
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if old != new and not field.metadata.get("free"):
                lines.append(f"{section.name}.{field.name}: {old!r} -> {new!r}")
    return lines


def to_json(config: Config) -> str:
    """Return `config` as JSON that `from_json` turns back into an equal config."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """Return the config that `to_json` wrote, checked."""
    return Config.from_dict(json.loads(text))


def _section(cls: type, name: str, values: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UserError(f"config section {name!r} is {type(values).__name__}, no table of fields; correct it")
    for key, value in values.items():
        if key not in types:
            raise unknown("config field", f"{name}.{key}", [f"{name}.{field}" for field in types])
        FIELDS[f"{name}.{key}"].check(f"{name}.{key}", value)
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{name}.{field.name} is missing; it has no default")
    return cls(**{key: float(value) if types[key] is float else value for key, value in values.items()})
