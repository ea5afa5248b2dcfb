"""From logits to tokens: greedy, temperature, top-k and top-p, with log-probabilities under the model itself.

The vocabulary may be divided over chips. What they tell each other is of size O(B k): the best of each chip, the k best
for top-k, sums of probabilities for top-p; never logits.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stagjax.model.attention import MASKED
from stagjax.rules import TEMPERATURE, TOP_P, Number


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 is greedy. Towards 0 draws become greedy too, but for equal logits, which stay
        equally likely; without bound they become uniform over the vocabulary.
      top_k: keep the k most probable tokens, None for all.
      top_p: keep the smallest set of most probable tokens whose probabilities sum to at least p (nucleus sampling);
        the most probable one always.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self, vocab_size: int) -> None:
        """Raise `UserError` for values outside their range."""
        TEMPERATURE.check("temperature", self.temperature)
        if self.top_k is not None:
            Number(int, 1, vocab_size, hint="the model's vocabulary").check("top_k", self.top_k)
        if self.top_p is not None:
            TOP_P.check("top_p", self.top_p)


# x -> every chip's x, chips first; a single chip has the whole vocabulary.
Gather = Callable[[jax.Array], jax.Array]


def alone(x: jax.Array) -> jax.Array:
    """Gather over one chip."""
    return x[None]


def sample(
    sampling: Sampling,
    logits_BV: jax.Array,
    keys_B: jax.Array,
    positions_B: jax.Array,
    num_ids: int,
    first_id: jax.Array | int = 0,
    gather: Gather = alone,
) -> tuple[jax.Array, jax.Array]:
    """Draw one token a row.

    Args:
      sampling: how; greedy needs no keys.
      logits_BV: of this chip's part of the vocabulary.
      keys_B: one PRNG key a row.
      positions_B: position that the drawn token will have; key, position and id alone decide a token's noise, so that
        neither a row's batch mates, nor the length of a compiled chunk, nor the number of chips do.
      num_ids: ids of the vocabulary; rows of the embedding beyond them are never drawn.
      first_id: id of this chip's first logit.
      gather: over the chips that hold a part of the vocabulary.

    Returns:
      tokens_B int32, and their log-probabilities under the unmodified distribution over `num_ids` ids, float32; the
      same on all chips.
    """
    ids_V = first_id + jnp.arange(logits_BV.shape[-1])
    logits_BV = jnp.where(ids_V < num_ids, logits_BV.astype(jnp.float32), MASKED)
    scores_BV = logits_BV
    if sampling.temperature > 0:
        scaled_BV = jnp.where(ids_V < num_ids, _divided(logits_BV, sampling.temperature, gather), -jnp.inf)
        scores_BV = _keep(sampling, scaled_BV, gather) + _noise(keys_B, positions_B, ids_V)
    best_B = jnp.argmax(scores_BV, axis=-1)
    pick = lambda x_BV: jnp.take_along_axis(x_BV, best_B[:, None], axis=-1)[:, 0]
    highest_B = jnp.max(logits_BV, axis=-1)
    total_B = jnp.sum(jnp.exp(logits_BV - highest_B[:, None]), axis=-1)
    # One message a chip: its best score, the id and logit of that, and the sum of its probabilities.
    floats = jnp.stack([pick(scores_BV), pick(logits_BV), highest_B, total_B])
    ids_B = (first_id + best_B).astype(jnp.int32)
    message = jnp.concatenate([jax.lax.bitcast_convert_type(floats, jnp.int32), ids_B[None]])
    all_C5B = gather(message)
    scores_CB, chosen_CB, highest_CB, total_CB = jnp.swapaxes(
        jax.lax.bitcast_convert_type(all_C5B[:, :4], jnp.float32), 0, 1
    )
    winner_1B = jnp.argmax(scores_CB, axis=0)[None]  # the first of equals: the lowest id
    of_winner = lambda x_CB: jnp.take_along_axis(x_CB, winner_1B, axis=0)[0]
    top_B = jnp.max(highest_CB, axis=0)
    log_total_B = top_B + jnp.log(jnp.sum(total_CB * jnp.exp(highest_CB - top_B), axis=0))
    return of_winner(all_C5B[:, 4]), of_winner(chosen_CB) - log_total_B


def log_probability(
    logits_BV: jax.Array, targets_B: jax.Array, num_ids: int, first_id: jax.Array | int = 0, gather: Gather = alone
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probabilities of given tokens, float32, and whether each is what greedy sampling would draw.

    Arguments as for `sample`; both results are the same on all chips.
    """
    ids_V = first_id + jnp.arange(logits_BV.shape[-1])
    logits_BV = jnp.where(ids_V < num_ids, logits_BV.astype(jnp.float32), MASKED)
    highest_B, best_B = jnp.max(logits_BV, axis=-1), jnp.argmax(logits_BV, axis=-1)
    total_B = jnp.sum(jnp.exp(logits_BV - highest_B[:, None]), axis=-1)
    # A chip that does not hold the target sends the least of all numbers.
    target_B = jnp.max(jnp.where(ids_V == targets_B[:, None], logits_BV, -jnp.inf), axis=-1)
    floats_C3B = gather(jnp.stack([highest_B, total_B, target_B]))
    ids_CB = gather((first_id + best_B).astype(jnp.int32))
    highest_CB, total_CB, target_CB = jnp.swapaxes(floats_C3B, 0, 1)
    top_B = jnp.max(highest_CB, axis=0)
    log_total_B = top_B + jnp.log(jnp.sum(total_CB * jnp.exp(highest_CB - top_B), axis=0))
    winner_1B = jnp.argmax(highest_CB, axis=0)[None]  # the first of equals: the lowest id
    drawn_B = jnp.take_along_axis(ids_CB, winner_1B, axis=0)[0]
    return jnp.max(target_CB, axis=0) - log_total_B, drawn_B == targets_B


def _noise(keys_B: jax.Array, positions_B: jax.Array, ids_V: jax.Array) -> jax.Array:
    """Return Gumbel noise, [B,V]."""

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, position)
        return jax.vmap(lambda token: jax.random.gumbel(jax.random.fold_in(key, token), dtype=jnp.float32))(ids_V)

    return jax.vmap(one)(keys_B, positions_B)


def _divided(logits_BV: jax.Array, temperature: float, gather: Gather) -> jax.Array:
    """Return the logits over the temperature, the highest of all chips at 0.

    The highest is taken off first, and the temperature is a normal float32: quotients then neither overflow, where the
    best of them would be infinite alike, nor become 0 / 0.
    """
    highest_B1 = jnp.max(gather(jnp.max(logits_BV, axis=-1, keepdims=True)), axis=0)
    float32 = jnp.finfo(jnp.float32)
    return (logits_BV - highest_B1) / min(max(temperature, float(float32.tiny)), float(float32.max))


def _keep(sampling: Sampling, logits_BV: jax.Array, gather: Gather) -> jax.Array:
    """Mask the tokens that top-k and then top-p leave out; ties with the last token kept are kept.

    The highest logit is 0 (`_divided`).
    """
    if sampling.top_k is not None:
        k = min(sampling.top_k, logits_BV.shape[-1])
        best_CBk = gather(jax.lax.top_k(logits_BV, k)[0])
        best_BC = jnp.swapaxes(best_CBk, 0, 1).reshape(logits_BV.shape[0], -1)
        kth_B1 = jax.lax.top_k(best_BC, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
    if sampling.top_p is not None:
        logits_BV = jnp.where(_in_nucleus(logits_BV, sampling.top_p, gather), logits_BV, -jnp.inf)
    return logits_BV


def _in_nucleus(logits_BV: jax.Array, top_p: float, gather: Gather) -> jax.Array:
    """Return which tokens are in the smallest set of most probable ones whose probabilities sum to at least `top_p`.

    The set is all logits from some value up. Its last value is found bit by bit, four bits a round, by summing the
    probabilities above 15 candidates: eight sums of [B,15] instead of a sort of all logits on one chip.
    """
    weights_BV = jnp.exp(logits_BV)
    total_B1 = jnp.sum(gather(jnp.sum(weights_BV, axis=-1, keepdims=True)), axis=0)
    # The weight of the highest is 1: what is wanted is never less, or the empty set would do where the product is 0.
    wanted_B1 = jnp.maximum(top_p * total_B1, 1)
    order_BV = _in_order(logits_BV)

    def four_bits(number: int, low_B: jax.Array) -> jax.Array:
        shift = jnp.uint32(28 - 4 * number)
        candidates_B15 = low_B[:, None] + (jnp.arange(1, 16, dtype=jnp.uint32) << shift)
        above_B15 = jax.lax.map(
            lambda candidate_B: jnp.sum(jnp.where(order_BV >= candidate_B[:, None], weights_BV, 0), axis=-1),
            candidates_B15.T,
        ).T
        enough_B15 = jnp.sum(gather(above_B15), axis=0) >= wanted_B1
        return low_B + (jnp.sum(enough_B15, axis=-1).astype(jnp.uint32) << shift)

    last_B = jax.lax.fori_loop(0, 8, four_bits, jnp.zeros(logits_BV.shape[0], jnp.uint32))
    return order_BV >= last_B[:, None]


def _in_order(x: jax.Array) -> jax.Array:
    """Return float32 values as uint32 that compare alike."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
