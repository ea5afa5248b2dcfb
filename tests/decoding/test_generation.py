"""Generation: what a row's result depends on, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax import memory
from stagjax.data.vocabulary import BOS, EOS, ByteVocabulary
from stagjax.decoding import loop
from stagjax.decoding.generation import generate, pad_left, row_keys
from stagjax.decoding.loop import Decoder
from stagjax.decoding.placement import make_placement
from stagjax.decoding.reference import SequentialDecoder
from stagjax.decoding.sampling import Sampling
from stagjax.errors import RunFailed, UserError
from tests.variants import params_of, tiny

CONFIG = tiny(vocab_size=300, max_length=96)  # more rows than the vocabulary has ids: the rest must never be drawn
VOCABULARY = ByteVocabulary()
PROMPTS = ["import os", "x", "def main(argv):"]
WARM = Sampling(temperature=1.0, top_k=50, top_p=0.95)


@pytest.fixture(scope="module")
def params():
    return params_of(CONFIG)


@pytest.fixture(scope="module")
def decoder(params):
    return Decoder(make_placement(CONFIG), params, VOCABULARY.size)


def run(decoder, prompts, max_new_tokens=40, sampling=WARM, **options):
    return generate(CONFIG, decoder, VOCABULARY, prompts, max_new_tokens=max_new_tokens, sampling=sampling, **options)


def test_a_batch_of_different_lengths_gives_each_row_what_it_gets_alone(decoder):
    together = run(decoder, PROMPTS)
    for prompt, row in zip(PROMPTS, together, strict=True):
        (alone,) = run(decoder, [prompt])
        assert alone.ids == row.ids
        np.testing.assert_allclose(alone.logprobs, row.logprobs, atol=1e-4)
    assert len({tuple(row.ids) for row in together}) == 3


def test_order_and_copies(decoder):
    first, second, copy = run(decoder, [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    second_again, first_again = run(decoder, [PROMPTS[1], PROMPTS[0]])
    assert (first.ids, second.ids) == (first_again.ids, second_again.ids)
    assert copy.ids != first.ids  # copies of a prompt are different samples


@pytest.mark.parametrize("chunk", [1, 7, 31])
def test_the_chunk_changes_nothing(decoder, chunk):
    for whole, parts in zip(run(decoder, PROMPTS), run(decoder, PROMPTS, chunk=chunk), strict=True):
        assert whole == parts


@pytest.mark.parametrize("sampling", [Sampling(), WARM])
def test_parallel_steps_draw_what_the_sequential_reference_draws(params, decoder, sampling):
    reference = run(SequentialDecoder(CONFIG, params, VOCABULARY.size), PROMPTS, 12, sampling)
    for slow, fast in zip(reference, run(decoder, PROMPTS, 12, sampling), strict=True):
        assert slow.ids == fast.ids
        np.testing.assert_allclose(slow.logprobs, fast.logprobs, atol=1e-4)


def test_caches_are_donated_from_chunk_to_chunk(decoder):
    tokens_BT, starts_B = pad_left([[1, 70, 71]], CONFIG.max_length)
    keys_B = row_keys([[1, 70, 71]], 0)
    statics = (decoder.placement, loop.Drawing(Sampling(), VOCABULARY.size, EOS))
    carry, _ = loop._start(*statics, 32, decoder.placed, tokens_BT, starts_B, keys_B)
    caches = jax.tree.leaves(carry.state.caches)
    compiled = loop.go_on.lower(*statics, decoder.placed, carry, keys_B, jnp.int32(4)).compile()
    # Output lies where the input lay: no second copy of any cache.
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in caches)
    loop.go_on(*statics, decoder.placed, carry, keys_B, jnp.int32(4))
    assert all(leaf.is_deleted() for leaf in caches)


def test_padding_before_a_short_prompt_is_never_handed_over():
    config = tiny(vocab_size=300, max_length=96, lag=3)
    params = params_of(config)
    # The empty prompt is BOS alone: for two more steps the memory holds what is left of the document's start, zeros.
    prompts, steps = ["", "a longer prompt"], 8
    fast = run(Decoder(make_placement(config), params, VOCABULARY.size), prompts, steps, Sampling())
    slow = run(SequentialDecoder(config, params, VOCABULARY.size), prompts, steps, Sampling())
    for a, b in zip(fast, slow, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_seeds_differ_and_repeat(decoder):
    assert run(decoder, PROMPTS, seed=1) == run(decoder, PROMPTS, seed=1)
    assert run(decoder, PROMPTS, seed=1)[0].ids != run(decoder, PROMPTS, seed=2)[0].ids


def test_ids_beyond_the_vocabulary_are_never_drawn(decoder):
    hot = Sampling(temperature=50.0)
    assert max(id_ for row in run(decoder, PROMPTS, 80, hot) for id_ in row.ids) < VOCABULARY.size


def test_a_stop_string_ends_its_row_alone_and_is_cut(decoder):
    free = run(decoder, PROMPTS)
    raw = [b"".join(VOCABULARY.pieces[id_] for id_ in row.ids) for row in free]
    # An untrained model draws any byte: take two characters that it happens to write.
    stop = next(raw[0][n : n + 2] for n in range(4, 38) if raw[0][n : n + 2].isascii()).decode()
    stopped = run(decoder, PROMPTS, stop=[stop])
    for row, before, written in zip(stopped, free, raw, strict=True):
        cut = written.find(stop.encode())
        if cut < 0:
            assert row == before
        else:
            assert row.stop_reason == "stop string"
            assert row.text == written[:cut].decode(errors="replace")
            assert row.ids == before.ids[: cut + 2]
    assert stopped[0].stop_reason == "stop string"


def test_the_end_of_a_document_ends_a_row(decoder):
    rows = run(decoder, PROMPTS * 8, 60, Sampling(temperature=30.0))
    ended = [row for row in rows if row.stop_reason == "end of document"]
    assert ended, "24 rows of 60 nearly uniform draws from 259 ids should contain one EOS"
    for row in ended:
        assert row.ids[-1] == EOS
        assert EOS not in row.ids[:-1]
        assert len(row.logprobs) == len(row.ids)


def test_streamed_text_is_the_result(decoder):
    told = {}
    rows = run(
        decoder, PROMPTS, stop=["e", "zz"], chunk=3, on_text=lambda row, text: told.setdefault(row, []).append(text)
    )
    for index, row in enumerate(rows):
        assert "".join(told.get(index, [])) == row.text


def test_log_probabilities_are_the_models_own(params, decoder):
    from stagjax.decoding.reference import sequential_logits

    (row,) = run(decoder, ["abc"], 10, Sampling(temperature=0.7, top_k=5))
    ids = [BOS, *VOCABULARY.encode("abc"), *row.ids]
    logits_TV = sequential_logits(CONFIG, params, np.asarray([ids], np.int32))[0, :, : VOCABULARY.size]
    logprobs_TV = jax.nn.log_softmax(logits_TV)
    wanted = [float(logprobs_TV[3 + n, id_]) for n, id_ in enumerate(row.ids)]
    np.testing.assert_allclose(row.logprobs, wanted, atol=1e-4)


def test_a_prompt_beyond_the_models_length_is_refused(decoder):
    with pytest.raises(UserError, match=r"has 91 tokens with BOS; with max_new_tokens=6.*max_length=96.*at most 5"):
        run(decoder, ["x" * 90], 6)
    (row,) = run(decoder, ["x" * 90], 5)
    assert len(row.ids) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is float, not int"),
        ({"chunk": 33}, "chunk=33 is over 32; use 1 to 32"),
        ({"seed": -1}, "seed=-1 is below 0; use 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 is over 4294967295; use 0 to 4294967295"),
        ({"seed": True}, "seed=True is bool, not int"),
        ({"stop": [""]}, "stop string is empty"),
        ({"sampling": Sampling(temperature=-1)}, "temperature=-1"),
        ({"sampling": Sampling(top_k=0)}, "top_k=0"),
        ({"sampling": Sampling(top_p=1.5)}, "top_p=1.5"),
    ],
)
def test_values_out_of_range_are_refused(decoder, options, message):
    with pytest.raises(UserError, match=message):
        run(decoder, PROMPTS, **options)


def test_padding_on_the_left_aligns_the_ends():
    tokens_BT, starts_B = pad_left([[1, 7], [1, 5, 6, 7]], 96)
    assert tokens_BT.shape == (2, 16)
    assert tokens_BT[0, starts_B[0] :].tolist() == [1, 7]
    assert tokens_BT[1, starts_B[1] :].tolist() == [1, 5, 6, 7]
    assert pad_left([[1] * 90], 96)[0].shape == (1, 96)


def test_too_little_memory_is_one_line_with_rows_and_tokens(decoder, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 10_000)
    with pytest.raises(RunFailed, match=r"out of memory: decoding 3 rows of 64 tokens \(prompt and max_new_tokens\)"):
        run(decoder, PROMPTS, 40)
