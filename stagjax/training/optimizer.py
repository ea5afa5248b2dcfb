"""AdamW with warm-up and a cosine, as the field trains decoder-only models (GPT-3, LLaMA; spec: Conventions)."""

import jax
import optax

from stagjax.config import TrainingConfig
from stagjax.model.stagformer import Params


def learning_rate_schedule(training: TrainingConfig) -> optax.Schedule:
    """Return step -> learning rate: linear from 0 to the peak, then a cosine to `final_learning_rate` of it."""
    peak, final = training.learning_rate, training.learning_rate * training.final_learning_rate
    # A run may be all warm-up: then the cosine is never reached, but optax wants it to have a step.
    end = max(training.steps, training.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, training.warmup_steps, end, final)


def make_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Return clipping by global norm, then AdamW with decay on matrices other than the embeddings."""
    return optax.chain(
        optax.clip_by_global_norm(training.clip_norm),
        optax.adamw(
            learning_rate_schedule(training),
            b1=training.beta1,
            b2=training.beta2,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: Params) -> Params:
    """Return a tree of booleans: True for the matrices that weight decay acts on."""

    def is_matrix(path: tuple, _: jax.Array) -> bool:
        names = [key.key for key in path]
        return names[0] in ("blocks", "cross") and names[-1] != "scale"

    return jax.tree_util.tree_map_with_path(is_matrix, params)
