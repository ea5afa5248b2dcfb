"""The guard inside the training step: it tells a bad step from a good one, and keeps the state from a bad one.

A step is bad if its loss or gradient norm is not finite, or (a spike) lies far above those of the steps before. "Far"
is counted in robust standard deviations above the median of the newest `WINDOW` good steps, so that what is looked for
does not widen the yardstick. That a step is left out by such statistics of loss and gradient norm is the idea of the
skip-step optimizers of OLMo 2 (arXiv 2501.00656) and Levanter, which take mean and standard deviation.

All of it is arrays in the training state: judged on the device without a wait, equal on all hosts, and in the
checkpoint, so that a resumed run judges as the unbroken one does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stagjax.config import TrainingConfig

WINDOW = 128
"""Good steps whose loss and gradient norm are remembered."""

ENOUGH = 32
"""Good steps before the first verdict on a spike."""

_NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""

_LEAST_SPREAD = 0.01
"""Of the median: a loss that hardly varies must not make every step a spike."""

# {"recent": float32 [2, WINDOW], "good", "skipped", "skipped_in_a_row": int32}
GuardState = dict[str, jax.Array]


class Verdict(NamedTuple):
    """What the guard says of a step.

    Attributes:
      spike: bool: the step is finite and far above the recent ones.
      skip: bool: the policies say that its update is not to be applied.
    """

    spike: jax.Array
    skip: jax.Array


def init_guard() -> GuardState:
    """Return the state of a guard that has seen nothing."""
    # A buffer for each: a state that was made without jit is donated, too.
    counts = {name: jnp.zeros((), jnp.int32) for name in ("good", "skipped", "skipped_in_a_row")}
    return {"recent": jnp.zeros((2, WINDOW), jnp.float32), **counts}


def judge(
    training: TrainingConfig, guard: GuardState, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[GuardState, Verdict]:
    """Return the guard after this step, and its verdict; only a good step changes the statistics."""
    values = jnp.stack([loss, gradient_norm]).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(values))
    no = jnp.zeros((), bool)
    spike = no if training.spikes == "none" else finite & _is_spike(training.spike_threshold, guard, values)
    skip = (~finite if training.nonfinite == "skip" else no) | (spike if training.spikes == "skip" else no)
    good = finite & ~spike
    slot = guard["good"] % WINDOW
    one = skip.astype(jnp.int32)
    after = {
        "recent": jnp.where(good, guard["recent"].at[:, slot].set(values), guard["recent"]),
        "good": guard["good"] + good.astype(jnp.int32),
        "skipped": guard["skipped"] + one,
        "skipped_in_a_row": (guard["skipped_in_a_row"] + one) * one,
    }
    return after, Verdict(spike, skip)


def may_skip(training: TrainingConfig) -> bool:
    """Return whether a policy can leave out an update."""
    return "skip" in (training.nonfinite, training.spikes)


def unless(skip: jax.Array, updated: Any, before: Any) -> Any:
    """Return `updated`, or `before` where `skip`; the learning rate's schedule advances in both.

    A schedule counts the updates that it has seen. It is kept in step with the run, so that the learning rate of a step
    and the end of the schedule do not depend on what was skipped.
    """
    schedule = lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)
    choose = lambda new, old: new if schedule(new) else jnp.where(skip, old, new)
    return jax.tree.map(choose, updated, before, is_leaf=schedule)


def _is_spike(threshold: float, guard: GuardState, values: jax.Array) -> jax.Array:
    seen = jnp.arange(WINDOW) < guard["good"]
    median = _median(guard["recent"], seen)
    deviation = _median(jnp.abs(guard["recent"] - median[:, None]), seen)
    spread = jnp.maximum(_NORMAL * deviation, _LEAST_SPREAD * jnp.abs(median))
    return (guard["good"] >= ENOUGH) & jnp.any(values > median + threshold * spread)


def _median(rows: jax.Array, seen: jax.Array) -> jax.Array:
    """Return the (lower) median of each row's entries that were `seen`, of which there is at least one."""
    ordered = jnp.sort(jnp.where(seen, rows, jnp.inf), axis=1)
    return ordered[:, jnp.maximum(jnp.sum(seen) - 1, 0) // 2]
