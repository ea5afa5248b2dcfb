"""Sampling against its definition, also at its ends, and on a vocabulary that is divided over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stagjax.decoding.sampling import Sampling, alone, sample
from stagjax.errors import UserError

LOGITS = jnp.log(jnp.asarray([0.4, 0.3, 0.15, 0.1, 0.05]))
DRAWS = 4000


def frequencies(sampling, num_ids=5):
    keys_B = jax.random.split(jax.random.key(0), DRAWS)
    logits_BV = jnp.broadcast_to(LOGITS, (DRAWS, 5))
    tokens_B, logprobs_B = sample(sampling, logits_BV, keys_B, jnp.zeros(DRAWS, jnp.int32), num_ids)
    return np.bincount(tokens_B, minlength=5) / DRAWS, np.asarray(tokens_B), np.asarray(logprobs_B)


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(temperature=1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.7), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.71), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(temperature=0.5), (np.array([0.4, 0.3, 0.15, 0.1, 0.05]) ** 2 / 0.285).tolist()),
        (Sampling(), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=1e-6), [1, 0, 0, 0, 0]),
    ],
)
def test_frequencies(sampling, wanted):
    found, _, _ = frequencies(sampling)
    # Five standard deviations of a share of DRAWS draws; what is left out is never drawn.
    assert np.abs(found - wanted).max() < 5 * 0.5 / DRAWS**0.5
    assert (found[np.asarray(wanted) == 0] == 0).all()


def test_log_probabilities_ignore_temperature_and_cuts_but_not_the_vocabulary():
    _, tokens, logprobs = frequencies(Sampling(temperature=3.0, top_k=2))
    np.testing.assert_allclose(logprobs, np.asarray(LOGITS)[tokens], rtol=1e-5)
    found, tokens, logprobs = frequencies(Sampling(temperature=1.0), num_ids=2)
    assert found[2:].sum() == 0
    np.testing.assert_allclose(np.exp(logprobs), np.asarray([4 / 7, 3 / 7])[tokens], rtol=1e-5)


def test_noise_depends_on_the_position():
    logits_BV = jnp.zeros((1, 1000))
    key = jax.random.split(jax.random.key(0), 1)
    drawn = {int(sample(Sampling(temperature=1.0), logits_BV, key, jnp.asarray([t]), 1000)[0][0]) for t in range(5)}
    assert len(drawn) == 5


# 13 ids on 16 rows: on eight devices the last one has padding only, and padding would be the most probable.
EDGE_V = np.array([0.5, 3.0, -2.0, 3.0, *np.linspace(-30, 2.5, 9), 40.0, 50.0, 60.0], np.float32)
BEST = {1, 3}


def edge_draws(sampling, first_id=0, gather=alone, logits_V=EDGE_V):
    """Return 512 tokens of `EDGE_V`."""
    keys_B, logits_BV = jax.random.split(jax.random.key(0), 512), jnp.broadcast_to(logits_V, (512, len(logits_V)))
    return sample(sampling, logits_BV, keys_B, jnp.zeros(512, jnp.int32), 13, first_id, gather)[0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-8])
def test_towards_zero_draws_become_greedy_and_equal_logits_stay_equally_likely(temperature):
    found = np.bincount(edge_draws(Sampling(temperature)), minlength=16)
    assert set(np.flatnonzero(found)) == BEST
    assert abs(found[1] - 256) < 5 * 512**0.5 / 2  # five standard deviations


@pytest.mark.parametrize("temperature", [1e8, 1e30, 1e39, 1.7e308])
def test_without_bound_draws_become_uniform_over_the_vocabulary(temperature):
    found = np.bincount(edge_draws(Sampling(temperature)), minlength=16)
    assert (found[13:] == 0).all()
    assert abs(found[:13] - 512 / 13).max() < 5 * (512 / 13) ** 0.5


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, top_p=5e-324),
        Sampling(1.0, top_p=1e-39),
        Sampling(1e30, top_p=1e-39, top_k=2),
        Sampling(1.0, top_k=1),
        Sampling(1e-45, top_k=13, top_p=1.0),
    ],
)
def test_the_best_ids_are_kept_whatever_is_cut(sampling):
    assert set(edge_draws(sampling).tolist()) == BEST  # both, as they are equal


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_p=1.0), Sampling(7.0, top_k=13, top_p=0.999)])
def test_padding_is_never_drawn(sampling):
    assert edge_draws(sampling).max() < 13


def test_chips_that_hold_parts_of_the_vocabulary_agree_at_its_ends():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("chips",))
    settings = [Sampling(1e-45), Sampling(1e39), Sampling(1.0, top_p=1e-39), Sampling(7.0, top_k=13, top_p=0.999)]

    def part(logits_V):
        gather = functools.partial(jax.lax.all_gather, axis_name="chips")
        first_id = jax.lax.axis_index("chips") * len(logits_V)
        return [edge_draws(sampling, first_id, gather, logits_V) for sampling in settings]

    specs = {"in_specs": PartitionSpec("chips"), "out_specs": PartitionSpec(), "check_vma": False}
    divided = jax.jit(jax.shard_map(part, mesh=mesh, **specs))(EDGE_V)
    for sampling, found in zip(settings, divided, strict=True):
        np.testing.assert_array_equal(found, edge_draws(sampling))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-300, "1", True, None])
def test_what_is_no_temperature_is_refused(value):
    with pytest.raises(UserError, match=r"^temperature=.* (is|not) .*; use 0 or more"):
        Sampling(value).check(13)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(top_p=float("nan")), r"top_p=nan is not finite; use more than 0, to 1 \(1 keeps all\)"),
        (Sampling(top_p=0.0), "top_p=0.0 is not above 0"),
        (Sampling(top_p=1.0000001), "top_p=1.0000001 is over 1"),
        (Sampling(top_k=14), r"top_k=14 is over 13; use 1 to 13 \(the model's vocabulary\)"),
        (Sampling(top_k=2.0), "top_k=2.0 is float, not int"),
        (Sampling(top_k=True), "top_k=True is bool, not int"),
    ],
)
def test_cuts_without_meaning_are_refused(sampling, message):
    with pytest.raises(UserError, match=f"^{message}"):
        sampling.check(13)
