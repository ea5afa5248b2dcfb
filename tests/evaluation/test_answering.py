"""Generation for benchmarks: batches by kind, truncation, stop strings, samples."""

import numpy as np
import pytest

from stagjax.data.vocabulary import ByteVocabulary
from stagjax.decoding.generation import continue_ids
from stagjax.decoding.loop import Chunk
from stagjax.decoding.sampling import Sampling
from stagjax.errors import UserError
from stagjax.evaluation import answering
from stagjax.evaluation.scoring import Scorer, Settings
from stagjax.mesh import DecodeMesh
from stagjax.tasks.requests import GenerationRequest
from tests.evaluation.models import ids_of, language_model
from tests.variants import VARIANTS

LM = language_model(VARIANTS["shared"])
REQUESTS = [
    GenerationRequest("first", max_new_tokens=6),
    GenerationRequest("the second one, which is longer", max_new_tokens=6),
    GenerationRequest("third", max_new_tokens=6, temperature=1.0, samples=3),
    GenerationRequest("", max_new_tokens=6),
]


class Scripted:
    """A decoder that always says the same."""

    def __init__(self, text):
        self._ids = ByteVocabulary().encode(text)

    def chunks(self, tokens_BT, starts_B, max_new_tokens, *args):
        for token in self._ids[:max_new_tokens]:
            stopped = yield Chunk(np.full((1, len(starts_B)), token), np.zeros((1, len(starts_B)), np.float32))
            if stopped is not None and stopped.all():
                return


def scripted(text, stop, stop_after_text):
    (found,) = continue_ids(
        Scripted(text),
        ByteVocabulary(),
        ["a"],
        [ids_of("a")],
        None,
        max_length=64,
        max_new_tokens=32,
        sampling=Sampling(),
        stop=stop,
        stop_after_text=stop_after_text,
    )
    return found.text


def test_answers_are_those_of_generate(monkeypatch):
    monkeypatch.setattr(answering, "ROWS_AT_ONCE", 2)
    answers = Scorer(LM, Settings(seed=5)).answer(REQUESTS)
    greedy = LM.generate([REQUESTS[n].context for n in (0, 1, 3)], 6)
    assert [answers[n].texts for n in (0, 1, 3)] == [(row.text,) for row in greedy]
    sampled = LM.generate([REQUESTS[2].context] * 3, 6, temperature=1.0, seed=5)
    assert answers[2] == (tuple(row.text for row in sampled), 0)
    assert len(set(answers[2].texts)) == 3


def test_recurrent_answers_are_those_of_recurrent_decoding():
    (answer,) = Scorer(LM, Settings(decoding="recurrent")).answer(REQUESTS[:1])
    (expected,) = LM.generate(REQUESTS[0].context, 6, decoding="recurrent")
    assert answer.texts == (expected.text,)


def test_stop_strings_are_of_each_request():
    contexts = "abcdefgh"
    plain = Scorer(LM).answer([GenerationRequest(context, max_new_tokens=12) for context in contexts])
    # Of an untrained model most text is no UTF-8; a letter is needed.
    said = {context: answer.texts[0] for context, answer in zip(contexts, plain, strict=True)}
    context, stop = next((c, letter) for c, text in said.items() for letter in text[1:] if letter.isascii())
    requests = [GenerationRequest(c, (stop,) if c == context else (), 12) for c in contexts]
    for c, answer in zip(contexts, Scorer(LM).answer(requests), strict=True):
        assert answer.texts[0] == (said[c][: said[c].index(stop)] if c == context else said[c])


def test_long_prompts_are_cut_at_the_left_and_counted():
    cut, short = Scorer(LM).answer(
        [GenerationRequest("abcdefgh" * 9, max_new_tokens=8), GenerationRequest("ab", (), 8)]
    )
    assert (cut.num_truncated, short.num_truncated) == (73 - 56, 0)
    whole = Scorer(LM).answer([GenerationRequest("x" * 99 + "abcdefgh" * 7, max_new_tokens=8)])
    assert whole[0].texts == cut.texts


def test_rows_are_divided_over_a_mesh():
    requests = REQUESTS[:2]
    found = Scorer(language_model(VARIANTS["shared"], DecodeMesh(data=4))).answer(requests)
    assert found == Scorer(LM).answer(requests)


def test_stop_strings_count_from_the_start_or_from_the_first_text_on():
    assert scripted("\nParis\nLondon", ("\n",), False) == ""
    assert scripted("\nParis\nLondon", ("\n",), True) == "\nParis"
    assert scripted(" \n\n\n", ("\n\n",), True) == " \n\n\n"
    assert scripted("Paris\n", ("\n",), True) == "Paris"
    assert scripted("\n def f\ndef g", ("\ndef", "\n def"), True) == "\n def f"


def test_the_scorer_passes_the_rule_on(monkeypatch):
    seen = []
    monkeypatch.setattr(answering, "continue_ids", lambda *args, **named: seen.append(named["stop_after_text"]) or [])
    for stop in ("anywhere", "after_text"):
        with pytest.raises(ValueError):  # no answer came back
            Scorer(LM, Settings(stop=stop)).answer(REQUESTS[:1])
    assert seen == [False, True]


def test_impossible_requests_are_refused():
    for request, message in [
        (GenerationRequest("a", max_new_tokens=0), "max_new_tokens=0 is below 1"),
        (GenerationRequest("a", max_new_tokens=64), "max_new_tokens=64 leaves nothing of model.max_length=64"),
        (GenerationRequest("a", ("",)), "a stop string is empty"),
        (GenerationRequest("a", samples=0, max_new_tokens=3), "samples=0 is below 1"),
        (GenerationRequest("a", temperature=-1.0), "temperature=-1.0 is below 0"),
    ]:
        with pytest.raises(UserError, match=message):
            Scorer(LM).answer([request])
