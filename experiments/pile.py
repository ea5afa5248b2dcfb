"""The Pile at the paper's size: 256,000 pieces, 250,000 steps of 1024 x 1280 tokens, 327.7B tokens in all.

    stagjax info --config=experiments/pile.py:VARIANT

Data: rows made from The Pile's files by `stagjax data prepare` (docs/data.md), named by --config.data.path=DIR; their
vocabulary comes with them.

Published results (arXiv 2501.15665, section 4): separate_2x18 at or better than baseline_36, shared_2x18 clearly better
than baseline_18 at about equal parameters. Here: not yet run. Memory, days and chip-hours on a
pod: docs/plan.md (estimates). Any variant takes `,runlocal`: a tiny model of bytes on Python's standard library, 60
steps, under a minute on a CPU.

The paper gives neither optimizer nor schedule; these are the field's:
- AdamW with betas 0.9 and 0.95, epsilon 1e-8, decay 0.1, clipping at 1: GPT-3 (arXiv 2005.14165, appendix B; 1.3B and
  2.7B models alike) and LLaMA (2302.13971, section 2.2).
- Learning rate 3e-4, 2000 steps of warm-up, cosine to a tenth: LLaMA's for its 7B. GPT-3 takes 2e-4 at 1.3B and 1.6e-4
  at 2.7B, Pythia (2304.01373, table 1) 2e-4 at 1.4B and 1.6e-4 at 2.8B. A batch has 1.3M tokens here, 4M in LLaMA, 1M
  in GPT-3 and 2M in Pythia.
"""

import ml_collections

from stagjax.experiment import select_variant

STAGGERED = {"model.num_stacks": 2}
THREE = {"model.num_stacks": 3, "model.layers_per_stack": 12}
FOUR = {"model.num_stacks": 4, "model.layers_per_stack": 9}

VARIANTS = {
    "baseline_18": {},  # 1.58B parameters
    "baseline_36": {"model.layers_per_stack": 36},  # 2.77B
    "shared_2x18": STAGGERED | {"model.shared_weights": True},  # 1.75B
    "separate_2x18": STAGGERED,  # 2.94B
    # As shallow as a stack and as wide as the parameters of separate_2x18 allow: the other way to fewer serial layers.
    "wide_18": {"model.ff_dim": 28672},  # 2.94B
    # Section 3.3: local cross-attention. Window 1 has no softmax left, and by far the cheapest decode step.
    "separate_2x18_window_512": STAGGERED | {"model.cross_window": 512},
    "separate_2x18_window_128": STAGGERED | {"model.cross_window": 128},
    "separate_2x18_window_1": STAGGERED | {"model.cross_window": 1},
    # Self- and cross-attention side by side: one all-reduce a layer less.
    "separate_2x18_parallel": STAGGERED | {"model.cross_attention": "parallel"},
    "separate_2x18_parallel_window_128": STAGGERED | {"model.cross_attention": "parallel", "model.cross_window": 128},
    # The control without staggering: stacks read each other at the same position, and decode one after the other.
    "separate_2x18_lag_0": STAGGERED | {"model.lag": 0},
    # The handoff has a whole step to arrive.
    "separate_2x18_lag_2": STAGGERED | {"model.lag": 2},
    # Section 3.4: more stacks of fewer layers; a learned combination of their outputs wins back quality.
    "separate_3x12": THREE,
    "separate_3x12_linear": THREE | {"model.combine": "linear"},
    "separate_4x9": FOUR,
    "separate_4x9_linear": FOUR | {"model.combine": "linear"},
}

RUNLOCAL = {
    "model.vocab_size": 259,
    "model.model_dim": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.head_dim": 32,
    "model.ff_dim": 256,
    "model.layers_per_stack": 3,
    "model.compute_dtype": "float32",
    "data.source": "stdlib",
    "data.path": None,
    "data.vocabulary": "bytes",
    "data.row_length": 128,
    "training.global_batch": 8,
    "training.steps": 60,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 10,
    "training.loss_chunks": 1,
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
            "vocab_size": 256_000,
            "model_dim": 1536,
            "num_heads": 12,
            "num_kv_heads": 12,
            "head_dim": 128,
            "ff_dim": 12288,
            "layers_per_stack": 18,
            "num_stacks": 1,
            "max_length": 1280,
            "compute_dtype": "bfloat16",
        }
    )
    config.data = ml_collections.ConfigDict(
        {"source": "prepared", "path": None, "vocabulary": "prepared", "row_length": 1280, "validation_percent": 1}
    )
    config.training = ml_collections.ConfigDict(
        {
            "steps": 250_000,
            "global_batch": 1024,
            "learning_rate": 3e-4,
            "warmup_steps": 2000,
            "remat": "layer",
            "loss_chunks": 8,
            "log_every": 50,
            "validate_every": 5000,
            "checkpoint_every": 5000,
        }
    )
    return select_variant(arg, config, VARIANTS, RUNLOCAL)
