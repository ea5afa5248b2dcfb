"""AdamW with warm-up and a cosine, as the field trains decoder-only models (GPT-3, LLaMA; spec: Conventions)."""

import jax
import jax.numpy as jnp
import optax

from stagjax.config import TrainingConfig
from stagjax.config_rules import COSINE_FROM_ZERO
from stagjax.model.stagformer import Params


def learning_rate_schedule(training: TrainingConfig) -> optax.Schedule:
    """Return steps done -> learning rate of the next step: linear up to the peak, then a cosine down.

    Step 1 takes a `warmup_steps`-th of the peak, the last step of the warm-up all of it, and the last of the run
    `final_learning_rate` of it, unless the run is all warm-up. Without a warm-up the first step has the peak.
    """
    peak, final = training.learning_rate, training.learning_rate * training.final_learning_rate
    steps, warm = training.steps, max(training.warmup_steps, 1)
    if training.schedule == COSINE_FROM_ZERO:
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, training.warmup_steps, max(steps, training.warmup_steps + 1), final
        )

    def rate(done: jax.Array | int) -> jax.Array:
        step = jnp.asarray(done) + 1
        share = jnp.clip((step - warm) / max(steps - warm, 1), 0, 1)
        falling = final + (peak - final) * (1 + jnp.cos(jnp.pi * share)) / 2
        now = jnp.where(step <= warm, peak * (step / warm), falling)
        # By itself, so that what is said of the last step holds to the bit.
        return jnp.where((step >= steps) & (steps > training.warmup_steps), final, now)

    return rate


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
