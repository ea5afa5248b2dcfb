"""The decode step against the sequential reference: every variant, position by position (spec: invariant 1)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.decoding.loop import teacher_forced_logits
from stagjax.decoding.placement import RECURRENT as RECURRENT_MODE
from stagjax.decoding.placement import make_placement, place
from stagjax.decoding.prefill import prefill
from stagjax.decoding.reference import sequential_logits, sequential_recurrent_logits
from stagjax.decoding.step import decode_step
from tests.variants import RECURRENT, VARIANTS, every_combination, params_of, tiny, tokens_of

T, PROMPT = 14, 4

# bfloat16 keeps 8 bits: decode and teacher-forced logits differ by rounding in another order. Largest difference
# as a share of the largest logit; measured on these models: 0.003 to 0.007.
BFLOAT16_TOLERANCE = 0.015

decoded_at = jax.jit(teacher_forced_logits, static_argnums=(0, 3))
expected = jax.jit(sequential_logits, static_argnums=0)
expected_recurrent = jax.jit(sequential_recurrent_logits, static_argnums=(0, 3))


def decoded(config, params, tokens_BT, prompt_length, mode="parallel"):
    return decoded_at(make_placement(config, mode=mode), params, tokens_BT, prompt_length)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


def in_float64(config, params):
    return tiny(**{**vars(config), "compute_dtype": "float64"}), jax.tree.map(
        functools.partial(jnp.asarray, dtype=jnp.float64), params
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_parallel_steps_equal_teacher_forced(name):
    config = VARIANTS[name]
    params, tokens_BT = params_of(config), tokens_of(config, 2, T)
    assert relative(decoded(config, params, tokens_BT, PROMPT), expected(config, params, tokens_BT)) < 1e-5


def test_the_combination_of_a_single_stack_is_learned_too():
    config = tiny(num_stacks=1, combine="linear")
    params, tokens_BT = params_of(config), tokens_of(config, 2, T)
    assert relative(decoded(config, params, tokens_BT, PROMPT), expected(config, params, tokens_BT)) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_parallel_steps_equal_teacher_forced_in_float64(name):
    with jax.enable_x64(True):
        config, params = in_float64(VARIANTS[name], params_of(VARIANTS[name]))
        tokens_BT = tokens_of(config, 2, T)
        logits_BTV = decoded(config, params, tokens_BT, 1)
        assert logits_BTV.dtype == jnp.float64
        assert relative(logits_BTV, expected(config, params, tokens_BT)) < 1e-12


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_steps_equal_the_sequential_recurrent_decode(name):
    # In float64: the recurrence of an untrained model grows without bound.
    with jax.enable_x64(True):
        config, params = in_float64(RECURRENT[name], params_of(RECURRENT[name]))
        if config.lag == 0:
            pytest.skip("recurrent decoding needs a lag")
        tokens_BT = tokens_of(config, 2, T)
        found = decoded(config, params, tokens_BT, PROMPT, RECURRENT_MODE)
        wanted = expected_recurrent(config, params, tokens_BT, PROMPT)
        assert relative(found, wanted) < 1e-12
        # and it is another computation than p passes a token
        assert relative(found[:, PROMPT:], expected(config, params, tokens_BT)[:, PROMPT:]) > 1e-3


@pytest.mark.parametrize("name", ["baseline", "separate", "shared", "window_5", "window_1", "everything", "lag_0"])
def test_bfloat16_decode_is_within_the_stated_tolerance(name):
    config = tiny(**{**vars(VARIANTS[name]), "compute_dtype": "bfloat16"})
    params, tokens_BT = params_of(config), tokens_of(config, 2, T)
    found = decoded(config, params, tokens_BT, PROMPT)
    assert found.dtype == jnp.float32
    difference = relative(found, expected(config, params, tokens_BT))
    assert 0 < difference < BFLOAT16_TOLERANCE


@pytest.mark.slow
def test_every_combination_of_features_decodes_as_it_is_trained():
    for config in every_combination():
        params, tokens_BT = params_of(config), tokens_of(config, 1, 9)
        found = decoded(config, params, tokens_BT, 2)
        assert relative(found, expected(config, params, tokens_BT)) < 1e-5, config
        jax.clear_caches()


def test_within_a_step_no_stack_waits_for_another():
    """With lag >= 1 a stack's output has no path from another stack's output of the same step; with lag 0 it has."""

    def influence_of_first_stack_on_last_output(lag):
        config = tiny(lag=lag)
        params, tokens_BT = params_of(config), tokens_of(config, 1, 6)
        placement = make_placement(config)
        placed = place(placement, params)
        _, state = prefill(placement, placed, tokens_BT[:, :5], jnp.zeros(1, jnp.int32), 8)

        def output(first_norm):
            stacks = (placed.stacks[0] | {"out_norm": first_norm}, placed.stacks[1])
            return decode_step(placement, placed._replace(stacks=stacks), state, tokens_BT[:, 5])[0]

        return np.abs(jax.jit(jax.jacrev(output))(placed.stacks[0]["out_norm"])).max()

    assert influence_of_first_stack_on_last_output(1) == 0
    assert influence_of_first_stack_on_last_output(2) == 0
    assert influence_of_first_stack_on_last_output(0) > 0


def test_passes_that_share_weights_hold_them_once():
    config = tiny(shared_weights=True, num_stacks=3, compute_dtype="bfloat16")
    (only,) = place(make_placement(config), params_of(config)).stacks
    assert only["layers"][1]["gate_up"].dtype == jnp.bfloat16
    assert only["out_norm"].dtype == jnp.float32
    # and so do the passes of lag 0, which cannot run as one
    first, second, third = place(
        make_placement(tiny(shared_weights=True, num_stacks=3, lag=0)), params_of(config)
    ).stacks
    assert first["layers"][1]["gate_up"] is second["layers"][1]["gate_up"] is third["layers"][1]["gate_up"]


def test_lag_two_hands_over_what_is_two_steps_old():
    config = tiny(lag=2)
    params = params_of(config)
    tokens_BT = tokens_of(config, 1, T)
    off_by_one = decoded(tiny(lag=1), params, tokens_BT, PROMPT)
    assert relative(off_by_one, expected(config, params, tokens_BT)) > 1e-3
