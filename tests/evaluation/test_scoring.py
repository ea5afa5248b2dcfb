"""Answers against the slow references: every variant, both decoding modes, on one device and on eight."""

import dataclasses

import jax
import numpy as np
import pytest

from stagjax.decoding.sampling import log_probability
from stagjax.errors import RunFailed, UserError
from stagjax.evaluation import forward, scoring
from stagjax.evaluation.scoring import Scorer, Settings
from stagjax.library import LanguageModel
from stagjax.mesh import DecodeMesh
from stagjax.tasks.requests import GenerationRequest, Loglikelihood, LoglikelihoodRequest, RollingRequest
from tests.evaluation.models import VOCAB, close, ids_of, language_model, logits_of, reference
from tests.variants import RECURRENT, VARIANTS

# How much a log-likelihood may depend on batch mates, order, the length of a row and the number of devices, as a share
# of it (float32). The largest difference seen in these tests: 4e-7.
TOLERANCE = 1e-5

# Recurrent models that between them have a lag, windows, three passes and a linear combination.
QUICK = ("lag_2_window_4_shared", "shared_window_1", "shared_lag_2_linear")

CHOICES = [LoglikelihoodRequest("the quick brown", choice) for choice in (" fox", " dogs of war", "!")]
REQUESTS = [*CHOICES, LoglikelihoodRequest("", "abc"), LoglikelihoodRequest("a", " much longer continuation")]


def logprobs(answers):
    return np.array([answer.logprob for answer in answers])


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_equal_whole_rows(name):
    lm = language_model(VARIANTS[name])
    for request, answer in zip(REQUESTS, Scorer(lm).answer(REQUESTS), strict=True):
        n = len(request.continuation)
        logprob, is_greedy = reference(lm, ids_of(request.context + request.continuation), n)
        close(answer.logprob, logprob, rtol=TOLERANCE)
        assert answer == Loglikelihood(answer.logprob, is_greedy, n, 0)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT],
)
def test_recurrent_scores_are_those_of_the_recurrent_decode(name):
    # In float64: the recurrence of an untrained model grows without bound.
    with jax.enable_x64(True):
        lm = in_float64(language_model(RECURRENT[name]))
        scorer = Scorer(lm, Settings(decoding="recurrent"))
        for request, answer, other in zip(CHOICES, scorer.answer(CHOICES), Scorer(lm).answer(CHOICES), strict=True):
            n = len(request.continuation)
            ids = ids_of(request.context + request.continuation)
            logprob, is_greedy = reference(lm, ids, n, recurrent=True)
            close(answer.logprob, logprob, rtol=TOLERANCE)
            assert answer == Loglikelihood(answer.logprob, is_greedy, n, 0)
            # The first token follows the prefill, which is the same; all further ones are of another computation.
            assert (abs(answer.logprob / other.logprob - 1) > 1e-4) == (n > 1)
    assert "token by token" in scorer.settings.scored_by and "teacher forcing" in Settings().scored_by


def test_the_most_probable_continuation_is_greedy():
    lm = language_model(VARIANTS["separate"])
    requests = [LoglikelihoodRequest(context, chr(code)) for context in "abcdefgh" for code in range(33, 127)]
    answers = Scorer(lm).answer(requests)
    greedy = [request for request, answer in zip(requests, answers, strict=True) if answer.is_greedy]
    best = {context: int(logits_of(lm, ids_of(context))[-1].argmax()) for context in "abcdefgh"}
    assert greedy == [LoglikelihoodRequest(c, chr(i - 3)) for c, i in best.items() if 33 <= i - 3 < 127]
    assert greedy
    # Two tokens are greedy if both are.
    first = greedy[0]
    answers = Scorer(lm).answer(
        [LoglikelihoodRequest(first.context, first.continuation + chr(n)) for n in range(97, 123)]
    )
    assert sum(answer.is_greedy for answer in answers) <= 1


@pytest.mark.parametrize("decoding", ["parallel", "recurrent"])
def test_answers_depend_neither_on_mates_nor_on_order(decoding):
    lm = language_model(VARIANTS["lag_2_window_4_shared"])
    settings = Settings(decoding=decoding)
    expected = logprobs(Scorer(lm, settings).answer(CHOICES))
    close(Scorer(lm, settings).answer(CHOICES[1:2])[0].logprob, expected[1], rtol=TOLERANCE)
    order, longer = [2, 0, 1], [LoglikelihoodRequest("x" * 30, choice) for choice in ("y", "z" * 9, "u")]
    shuffled = Scorer(lm, settings, slots=64).answer([*longer, *[CHOICES[n] for n in order]])
    close(logprobs(shuffled)[3:], expected[order], rtol=TOLERANCE)
    close(logprobs(Scorer(lm, settings).answer(longer)), logprobs(shuffled)[:3], rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "decoding", "mesh"),
    [
        ("separate", "parallel", DecodeMesh(data=8)),
        ("lag_2_window_4_shared", "parallel", DecodeMesh(data=2, stack=3)),
        pytest.param("everything", "parallel", DecodeMesh(data=2, stack=4), marks=pytest.mark.slow),
        ("shared", "recurrent", DecodeMesh(data=4, tensor=2)),
    ],
)
def test_eight_devices_answer_as_one(name, decoding, mesh):
    settings = Settings(decoding=decoding)
    expected = Scorer(language_model(VARIANTS[name]), settings).answer(REQUESTS)
    found = Scorer(language_model(VARIANTS[name], mesh), settings).answer(REQUESTS)
    close(logprobs(found), logprobs(expected), rtol=TOLERANCE)
    assert [answer._replace(logprob=0) for answer in found] == [answer._replace(logprob=0) for answer in expected]


def test_rows_are_divided_over_all_devices():
    scorer = Scorer(language_model(VARIANTS["separate"], DecodeMesh(data=2, stack=2, tensor=2)))
    assert dict(scorer._mesh.shape) == {"data": 2, "fsdp": 4, "stack": 1, "tensor": 1}
    assert scorer._pass._rows.shard_shape((8, 32)) == (1, 32)


def test_long_contexts_are_truncated_and_counted():
    lm = language_model(VARIANTS["separate"])
    scorer = Scorer(lm)
    requests = [LoglikelihoodRequest("abcd" * 20, " end"), LoglikelihoodRequest("ab", "c")]
    long, short = scorer.answer(requests)
    ids = ids_of("abcd" * 20 + " end")[-65:]
    close(long.logprob, reference(lm, ids, 4)[0], rtol=TOLERANCE)
    assert (long.num_truncated, short.num_truncated) == (81 + 4 - 65, 0)
    assert (scorer.statistics.requests, scorer.statistics.truncated, scorer.statistics.tokens) == (2, 1, 5)
    assert scorer.statistics.slots > scorer.statistics.padding > 0


@pytest.mark.parametrize("rule", ["disjoint", "overlap"])
def test_documents_are_scored_once_through_windows(rule):
    lm = language_model(VARIANTS["separate"])
    text = "All work and no play makes Jack a dull boy. " * 3
    (answer,) = Scorer(lm, Settings(documents=rule)).answer([RollingRequest(text)])
    ids = [*ids_of(text), 2]
    firsts = {"disjoint": [1, 65, 129], "overlap": [1, 65, 97, 129]}[rule]
    total = 0
    for first, end in zip(firsts, [*firsts[1:], len(ids)], strict=True):
        total += reference(lm, ids[max(0, end - 65) : end], end - first)[0]
    close(answer.logprob, total, rtol=TOLERANCE)
    assert answer.num_tokens == len(text) + 1
    (without_end,) = Scorer(lm, Settings(documents=rule)).answer([RollingRequest(text, with_end=False)])
    assert without_end.num_tokens == len(text) and without_end.logprob > answer.logprob


def test_a_recurrent_document_is_read_from_its_first_token():
    with jax.enable_x64(True):
        lm = in_float64(language_model(VARIANTS["shared"]))
        (answer,) = Scorer(lm, Settings(decoding="recurrent")).answer([RollingRequest("to be or")])
        close(answer.logprob, reference(lm, [*ids_of("to be or"), 2], 9, recurrent=True)[0], rtol=TOLERANCE)


def test_nothing_is_answered_with_nothing():
    scorer = Scorer(language_model(VARIANTS["baseline"]))
    assert scorer.answer([]) == []
    assert scorer.answer([RollingRequest("", with_end=False)]) == [Loglikelihood(0.0, True, 0)]


def test_logits_in_chunks_are_the_same(monkeypatch):
    lm = language_model(VARIANTS["separate_3_linear"])
    expected = Scorer(lm).answer(REQUESTS)
    monkeypatch.setattr(forward, "MAX_LOGITS", 2048)
    forward._program.cache_clear()
    sizes = []
    whole = forward._log_probabilities
    monkeypatch.setattr(forward, "_log_probabilities", lambda *args: (sizes.append(args[2].shape), whole(*args))[1])
    close(logprobs(Scorer(lm).answer(REQUESTS)), logprobs(expected), rtol=TOLERANCE)
    forward._program.cache_clear()
    assert sizes and all(rows * scored * (VOCAB + 5) <= 2048 or scored == 1 for rows, scored, _ in sizes)


def test_progress_is_told_after_every_batch():
    told = []
    requests = [*REQUESTS, RollingRequest("ab" * 50), GenerationRequest("a", max_new_tokens=2)]
    Scorer(language_model(VARIANTS["baseline"]), slots=64).answer(
        requests, lambda done, total: told.append((done, total))
    )
    assert told == sorted(told) and told[-1] == (7, 7) and len(told) > 3


def test_unknown_settings_are_refused():
    lm = language_model(VARIANTS["separate"])
    with pytest.raises(UserError, match="unknown documents 'disjont'; did you mean 'disjoint'"):
        Scorer(lm, Settings(documents="disjont"))
    with pytest.raises(UserError, match="unknown decoding 'sequential'"):
        Scorer(lm, Settings(decoding="sequential"))
    with pytest.raises(UserError, match="unknown stop"):
        Scorer(lm, Settings(stop="never"))
    with pytest.raises(UserError, match="recurrent decoding needs a shared-weights model"):
        Scorer(lm, Settings(decoding="recurrent"))


def test_probabilities_over_a_divided_vocabulary():
    draw = np.random.default_rng(3)
    logits_BV = draw.normal(size=(6, 12)).astype(np.float32)
    logits_BV[0, [2, 9]] = 5.0  # of equals the lower id is drawn
    targets_B = np.array([2, 9, 9, 0, 7, int(logits_BV[5, :10].argmax())])
    logits_BV[1, [2, 9]] = 5.0
    num_ids = 10
    wanted_BV = logits_BV[:, :num_ids] - np.logaddexp.reduce(logits_BV[:, :num_ids], axis=-1, keepdims=True)

    def part(logits_BV):
        chip = jax.lax.axis_index("chip")
        return log_probability(logits_BV, targets_B, num_ids, chip * 4, lambda x: jax.lax.all_gather(x, "chip"))

    parts = logits_BV.reshape(6, 3, 4).swapaxes(0, 1)
    logprobs_CB, greedy_CB = jax.vmap(part, axis_name="chip")(parts)
    for chip in range(3):
        close(logprobs_CB[chip], wanted_BV[np.arange(6), targets_B], rtol=1e-6)
        assert greedy_CB[chip].tolist() == (wanted_BV.argmax(axis=-1) == targets_B).tolist()
    assert greedy_CB[0][0] and not greedy_CB[0][1] and greedy_CB[0][5]


def in_float64(lm):
    config = dataclasses.replace(lm.config, model=dataclasses.replace(lm.config.model, compute_dtype="float64"))
    return LanguageModel(config, jax.tree.map(lambda x: x.astype(np.float64), lm.params), lm.vocabulary, 0, lm.mesh)


def test_too_little_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(scoring, "grow", lambda spans: np.empty(1 << 50))
    with pytest.raises(
        RunFailed, match=r"out of memory: scoring 64 tokens at once on each device does not fit; divide"
    ):
        Scorer(language_model(VARIANTS["baseline"]), slots=64).answer(CHOICES)
