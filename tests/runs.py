"""Tiny workdirs on a small corpus of their own: as training leaves them, without its minutes."""

import pathlib
from collections.abc import Sequence

import jax

from stagjax import workdir as workdirs
from stagjax.checkpoints.saving import Checkpoints
from stagjax.config import Config
from stagjax.data.corpus import load_corpus
from stagjax.experiment import load_config
from stagjax.training.state import state_around
from tests.variants import params_of

TINY = {
    "model.model_dim": 32,
    "model.head_dim": 16,
    "model.ff_dim": 32,
    "data.source": "text",
    "data.row_length": 32,
    "training.validation_rows": 8,
}
FIELDS = TINY | {
    "model.max_length": 48,
    "training.steps": 4,
    "training.warmup_steps": 2,
    "training.log_every": 1,
    "training.validate_every": 4,
    "training.checkpoint_every": 2,
}


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
    """Write sixty small documents below `folder` and return their directory."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for n in range(60):
        (corpus / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps. " * (n % 7 + 1))
    return corpus


def tiny_run(variant: str, corpus: pathlib.Path, **changes) -> Config:
    """Return the config of a variant of experiments/stdlib.py made tiny; `model__lag=2` changes a field."""
    fields = FIELDS | {"data.path": str(corpus)} | {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(
        f"experiments/stdlib.py:{variant},runlocal", [f"{name}={value}" for name, value in fields.items()]
    )


def write_run(config: Config, workdir: pathlib.Path, losses: Sequence[float | None] = (3.0, 2.0)) -> pathlib.Path:
    """Write what a run leaves, with random parameters: checkpoints 2, 4, ... of these validation losses."""
    manifest = load_corpus(config.data, config.model.vocab_size).manifest
    workdir.mkdir(parents=True)
    workdirs.claim(workdir, config, manifest)
    checkpoints = Checkpoints(workdir, keep_last=9)
    for index, loss in enumerate(losses):
        params, step = params_of(config.model, seed=index), 2 * (index + 1)
        # Anything but what a new state holds, so that a test sees which of the two it has.
        state = jax.tree.map(lambda leaf: leaf + 1, state_around(config, params)) | {"params": params}
        state["step"] = jax.numpy.int32(step)
        checkpoints.save(step, state, config.to_dict(), manifest.to_dict(), loss, [(1, 2)])
    checkpoints.close()
    return workdir
