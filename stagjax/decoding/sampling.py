"""From logits to tokens: greedy, temperature, top-k and top-p, with log-probabilities under the model itself."""

import dataclasses

import jax
import jax.numpy as jnp

from stagjax.errors import UserError
from stagjax.model.attention import MASKED


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k most probable tokens, None for all.
      top_p: keep the smallest set of most probable tokens whose probabilities sum to at least p (nucleus sampling).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self, vocab_size: int) -> None:
        """Raise `UserError` for values outside their range."""
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} is negative; use 0 for greedy, 1 for the model as it is")
        if self.top_k is not None and not 1 <= self.top_k <= vocab_size:
            raise UserError(f"top_k={self.top_k} is outside 1..{vocab_size}, the model's vocabulary")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is outside (0, 1]")


def sample(
    sampling: Sampling, logits_BV: jax.Array, keys_B: jax.Array, positions_B: jax.Array, num_ids: int
) -> tuple[jax.Array, jax.Array]:
    """Draw one token a row.

    Args:
      sampling: how; greedy needs no keys.
      logits_BV: float32.
      keys_B: one PRNG key a row.
      positions_B: position that the drawn token will have; key and position alone decide a row's noise, so that
        neither its batch mates nor the length of a compiled chunk do.
      num_ids: ids of the vocabulary; rows of the embedding beyond them are never drawn.

    Returns:
      tokens_B int32, and their log-probabilities under the unmodified distribution over `num_ids` ids, float32.
    """
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < num_ids, logits_BV, MASKED)
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    if sampling.temperature == 0:
        tokens_B = jnp.argmax(logits_BV, axis=-1)
    else:
        kept_BV = _keep(sampling, logits_BV / sampling.temperature)
        noise_BV = jax.vmap(lambda key, t: jax.random.gumbel(jax.random.fold_in(key, t), kept_BV.shape[1:]))(
            keys_B, positions_B
        )
        tokens_B = jnp.argmax(kept_BV + noise_BV, axis=-1)
    tokens_B = tokens_B.astype(jnp.int32)
    return tokens_B, jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0].astype(jnp.float32)


def _keep(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
    """Mask the tokens that top-k and then top-p leave out; ties with the last token kept are kept."""
    if sampling.top_k is not None:
        best_BK = jax.lax.top_k(logits_BV, sampling.top_k)[0]
        logits_BV = jnp.where(logits_BV >= best_BK[:, -1:], logits_BV, -jnp.inf)
    if sampling.top_p is not None:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        last_B = jnp.maximum(jnp.sum(before_BV < sampling.top_p, axis=-1), 1) - 1
        logits_BV = jnp.where(
            logits_BV >= jnp.take_along_axis(sorted_BV, last_B[:, None], axis=-1), logits_BV, -jnp.inf
        )
    return logits_BV
