"""The one schema of an experiment: frozen dataclasses and their rules.

Everything that can be wrong with an experiment is found here, before a device is touched.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

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
        for field in (
            "vocab_size",
            "model_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "ff_dim",
            "layers_per_stack",
            "num_stacks",
            "max_length",
        ):
            _at_least(self, "model", field, 1)
        _at_least(self, "model", "lag", 0)
        if self.cross_window is not None:
            _at_least(self, "model", "cross_window", 1)
        _one_of(self, "model", "cross_attention", ("sequential", "parallel"))
        _one_of(self, "model", "combine", ("last", "linear"))
        _one_of(self, "model", "compute_dtype", ("float32", "bfloat16", "float64"))
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide model.num_heads={self.num_heads}; "
                f"use one of {', '.join(map(str, divisors(self.num_heads)))}"
            )
        if self.head_dim % 2:
            raise UserError(
                f"model.head_dim={self.head_dim} is odd, but the rotary embedding pairs the halves of a head; "
                f"use {self.head_dim + 1}"
            )


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
        _one_of(self, "data", "source", ("stdlib", "text", "jsonl", "prepared"))
        if self.vocabulary == "prepared" and self.source != "prepared":
            raise UserError(
                f"data.vocabulary='prepared' is that of prepared data, but data.source={self.source!r}; use "
                "data.source='prepared', 'bytes' or the path of a model"
            )
        _at_least(self, "data", "row_length", 2)
        _at_least(self, "data", "validation_percent", 1)
        if self.validation_percent > 50:
            raise UserError(f"data.validation_percent={self.validation_percent} is over 50; use 1 to 50")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, schedule, and how often things happen. The fields declared `free` may change when a run resumes.

    Attributes:
      steps: optimizer steps; the cosine ends there.
      global_batch: rows in one optimizer step, over all hosts and all `accumulation` parts.
      learning_rate: peak, reached after warm-up.
      warmup_steps: of linear warm-up from zero.
      final_learning_rate: as a share of the peak, reached at the last step.
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
        """Raise `UserError` for counts below one and batches that do not divide."""
        for field in (
            "steps",
            "global_batch",
            "accumulation",
            "loss_chunks",
            "log_every",
            "validate_every",
            "checkpoint_every",
            "keep_last",
            "max_recoveries",
        ):
            _at_least(self, "training", field, 1)
        for field in ("validation_rows", "microbatches", "keep_every"):
            if getattr(self, field) is not None:
                _at_least(self, "training", field, 1)
        for field in ("warmup_steps", "learning_rate", "final_learning_rate", "weight_decay", "seed"):
            _at_least(self, "training", field, 0)
        if self.warmup_steps > self.steps:
            raise UserError(
                f"training.warmup_steps={self.warmup_steps} is over training.steps={self.steps}; "
                "lower it or train longer"
            )
        if self.clip_norm <= 0:
            raise UserError(f"training.clip_norm={self.clip_norm} must be positive; the usual value is 1.0")
        if self.spike_threshold <= 0:
            raise UserError(
                f"training.spike_threshold={self.spike_threshold} must be positive; the usual values are 6 to 15"
            )
        _one_of(self, "training", "nonfinite", ("stop", "skip", "rollback"))
        _one_of(self, "training", "spikes", ("none", "stop", "skip", "rollback"))
        _one_of(self, "training", "remat", ("none", "layer"))
        _one_of(self, "training", "attention", ("auto", "xla", "splash", "cudnn"))
        if self.global_batch % self.accumulation:
            raise UserError(
                f"training.global_batch={self.global_batch} does not divide into "
                f"training.accumulation={self.accumulation} parts; use one of "
                f"{', '.join(map(str, divisors(self.global_batch)))}"
            )


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
        for field in ("data", "stack", "tensor"):
            _at_least(self, "mesh", field, 1)
        if self.fsdp is not None:
            _at_least(self, "mesh", "fsdp", 1)


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
        if self.data.row_length > self.model.max_length:
            raise UserError(
                f"data.row_length={self.data.row_length} is over model.max_length={self.model.max_length}; "
                "shorten the rows or lengthen the model"
            )
        if self.mesh.stack not in (1, self.model.num_stacks):
            raise UserError(
                f"mesh.stack={self.mesh.stack} is neither 1 nor model.num_stacks={self.model.num_stacks}: a "
                "pipeline has one slice for each stack; use one of them, and mesh.fsdp for the other devices"
            )
        if self.data.row_length % self.training.loss_chunks:
            raise UserError(
                f"training.loss_chunks={self.training.loss_chunks} does not divide "
                f"data.row_length={self.data.row_length}; use one of "
                f"{', '.join(map(str, divisors(self.data.row_length)))}"
            )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the config as plain nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Config":
        """Build and check a config from nested mappings.

        Raises:
          UserError: unknown section or field (the nearest is named), a missing field, a wrong type, a broken rule.
        """
        sections = {}
        types = typing.get_type_hints(cls)
        for name, value in tree.items():
            if name not in types:
                raise unknown("config section", name, types)
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


def divisors(number: int) -> list[int]:
    """Return the divisors of `number` in ascending order."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def to_json(config: Config) -> str:
    """Return `config` as JSON that `from_json` turns back into an equal config."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """Return the config that `to_json` wrote, checked."""
    return Config.from_dict(json.loads(text))


def _section(cls: type, name: str, values: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in types:
            raise unknown("config field", f"{name}.{key}", [f"{name}.{field}" for field in types])
        if not _is_a(value, types[key]):
            wanted = getattr(types[key], "__name__", str(types[key]))
            raise UserError(f"{name}.{key}={value!r} is {type(value).__name__}, not {wanted}")
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{name}.{field.name} is missing; it has no default")
    return cls(**{key: float(value) if types[key] is float else value for key, value in values.items()})


def _is_a(value: Any, wanted: Any) -> bool:
    options = typing.get_args(wanted) or (wanted,)
    if isinstance(value, bool):
        return bool in options
    if isinstance(value, int) and float in options:
        return True
    return isinstance(value, options)


def _at_least(section: Any, name: str, field: str, minimum: int) -> None:
    value = getattr(section, field)
    if value < minimum:
        raise UserError(f"{name}.{field}={value} is below {minimum}; use {minimum} or more")


def _one_of(section: Any, name: str, field: str, known: Sequence[str]) -> None:
    value = getattr(section, field)
    if value not in known:
        raise unknown(f"{name}.{field}", value, known)
