"""Sampling against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.decoding.sampling import Sampling, sample

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
