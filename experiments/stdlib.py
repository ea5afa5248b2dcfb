"""Python's standard library as a corpus: a first model on any machine, nothing to download.

    stagjax train --config=experiments/stdlib.py:VARIANT --workdir=DIR

About 12 MB of source code and documentation, read as bytes; width 128, six layers in all unless the name says
otherwise. On 2 cores of a CPU a token costs what README.md's table says: 4.1M tokens (2000 steps of 8 x 256) take 4
minutes at baseline_3's 16k tokens/s and 10 at separate_2x3's 7k. Results after 320 steps of 4 rows: the same table.
After 2000 steps: not yet run. Any variant takes `,runlocal`: a tiny model and 60 steps, under a minute.
"""

import ml_collections

from stagjax.experiment import select_variant

STAGGERED = {"model.num_stacks": 2, "model.layers_per_stack": 3}

# Large enough for a decode step of milliseconds on one core: what the latency benchmark is tried with on a CPU.
MEDIUM = {
    "model.model_dim": 512,
    "model.num_heads": 8,
    "model.num_kv_heads": 8,
    "model.head_dim": 64,
    "model.ff_dim": 4096,
    "model.layers_per_stack": 6,
}

VARIANTS = {
    "baseline_3": {"model.layers_per_stack": 3},
    "baseline_6": {},
    "separate_2x3": STAGGERED,
    "shared_2x3": STAGGERED | {"model.shared_weights": True},
    "separate_3x2": {"model.num_stacks": 3, "model.layers_per_stack": 2},
    "separate_3x2_linear": {"model.num_stacks": 3, "model.layers_per_stack": 2, "model.combine": "linear"},
    "shared_3x3": {"model.num_stacks": 3, "model.layers_per_stack": 3, "model.shared_weights": True},
    "window_64": STAGGERED | {"model.cross_window": 64},
    "window_1": STAGGERED | {"model.cross_window": 1},
    "parallel_cross": STAGGERED | {"model.cross_attention": "parallel"},
    "lag_0": STAGGERED | {"model.lag": 0},
    "lag_2": STAGGERED | {"model.lag": 2},
    "grouped_query": STAGGERED | {"model.num_kv_heads": 2},
    "medium_baseline_12": MEDIUM | {"model.layers_per_stack": 12},
    "medium_separate_2x6": MEDIUM | {"model.num_stacks": 2},
    "medium_shared_2x6": MEDIUM | {"model.num_stacks": 2, "model.shared_weights": True},
}

RUNLOCAL = {
    "model.model_dim": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.head_dim": 32,
    "model.ff_dim": 256,
    "data.row_length": 128,
    "training.global_batch": 8,
    "training.steps": 60,
    "training.warmup_steps": 10,
    "training.log_every": 10,
    "training.validate_every": 30,
    "training.validation_rows": 64,
    "training.checkpoint_every": 30,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the experiment for `VARIANT[,section.field=value...][,runlocal]`."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(
        {
            "vocab_size": 259,  # 256 bytes, and padding, BOS, EOS
            "model_dim": 128,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 32,
            "ff_dim": 512,
            "layers_per_stack": 6,
            "num_stacks": 1,
            "max_length": 1024,
            "compute_dtype": "float32",
        }
    )
    config.data = ml_collections.ConfigDict({"source": "stdlib", "vocabulary": "bytes", "row_length": 256})
    config.training = ml_collections.ConfigDict(
        {
            "steps": 2000,
            "global_batch": 8,
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "log_every": 10,
            "validate_every": 200,
            "validation_rows": 256,
            "checkpoint_every": 200,
        }
    )
    return select_variant(arg, config, VARIANTS, RUNLOCAL)
