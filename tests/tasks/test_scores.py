"""Scores of documents and the metrics made of them, for invented answers of a model."""

import math

import pytest

from stagjax.tasks import catalog, spans
from stagjax.tasks.benchmark import load
from stagjax.tasks.multiple_choice import score_choices
from stagjax.tasks.requests import Answers, Loglikelihood, Outcomes
from tests.tasks import official_files


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return official_files.write(tmp_path_factory.mktemp("data"))


def scored(directory, name, *answers):
    """Return the scores of the first documents, given a list of answers for each."""
    benchmark = catalog.get(name)
    documents = load(benchmark, directory, pool=False).documents
    return [benchmark.score(document, found) for document, found in zip(documents, answers, strict=False)]


def logprobs(*values, greedy=False):
    return [Loglikelihood(value, greedy, 1) for value in values]


def test_length_normalisation_is_by_characters_and_ties_go_to_the_first():
    scores = score_choices([-2.0, -3.0], [1, 3], 1)
    assert (scores["acc"], scores["acc_norm"]) == (0.0, 1.0)
    assert score_choices([-1.0, -1.0], [2, 2], 0)["acc"] == 1.0
    assert score_choices([-1.0, -1.0], [2, 2], 1)["acc"] == 0.0
    # Of an empty choice: 0 / 0 is not a number, which argmax takes for the largest; -1 / 0 is the smallest.
    assert score_choices([-1.0, -0.0], [1, 0], 1)["acc_norm"] == 1.0
    assert score_choices([-9.0, -1.0], [1, 0], 0)["acc_norm"] == 1.0


def test_the_space_before_a_choice_is_not_counted(directory):
    # Choices of 3 ("ice") and 8 characters: -3 / 3 beats -8.5 / 8, and would lose with the space, -3 / 4 to -8.5 / 9.
    (score,) = scored(directory, "arc_easy", logprobs(-3.0, -8.5))
    assert (score["acc"], score["acc_norm"]) == (1.0, 1.0)
    (score,) = scored(directory, "arc_easy", logprobs(-3.9, -10.0))
    assert (score["acc"], score["acc_norm"]) == (1.0, 0.0)


def test_copa_takes_the_first_of_two_equal_choices_for_right(directory):
    assert scored(directory, "copa", logprobs(-1, -2), logprobs(-1, -2))[1]["acc"] == 1.0


def test_multirc_is_the_accuracy_over_answers_and_its_labels_count_the_harness_way(directory):
    scores = scored(directory, "multirc", *[logprobs(-1, -2)] * 3)
    assert [score["acc"] for score in scores] == [0.0, 1.0, 1.0]
    assert catalog.get("multirc").aggregate(scores)["acc"].value == pytest.approx(2 / 3)


def test_cb_has_accuracy_and_macro_f1(directory):
    scores = scored(directory, "cb", logprobs(-3, -2, -1), logprobs(-3, -2, -1))
    estimates = catalog.get("cb").aggregate(scores)
    assert (estimates["acc"].value, estimates["f1"].value) == (0.5, pytest.approx((2 / 3) / 3))


def test_winogrande_compares_the_contexts(directory):
    first, second = scored(directory, "winogrande", logprobs(-2, -1), logprobs(-2, -1))
    assert (first["acc"], second["acc"]) == (1.0, 0.0)


def test_record_compares_the_chosen_entity_with_all_right_ones(directory):
    # Entities in order: Ada, Ada Roe, Paris. Right: "Paris", "the Ada Roe".
    values = [scored(directory, "record", logprobs(*row))[0] for row in ((-1, -2, -3), (-2, -1, -3), (-2, -3, -1))]
    assert [(score["em"], score["f1"]) for score in values] == [(0, pytest.approx(2 / 3)), (1, 1.0), (1, 1.0)]


def test_lambada_has_accuracy_by_greed_and_perplexity(directory):
    scores = scored(directory, "lambada_openai", logprobs(-1.0, greedy=True), logprobs(-3.0))
    estimates = catalog.get("lambada_openai").aggregate(scores)
    assert estimates["acc"].value == 0.5
    assert estimates["perplexity"].value == pytest.approx(math.exp(2))
    unknown = scored(directory, "lambada_openai", logprobs(-1.0, greedy=None))
    assert list(catalog.get("lambada_openai").aggregate(unknown)) == ["perplexity"]


def test_normalised_spans():
    assert spans.normalised("The  Cat's, an A\u2014b\tthe") == "cats \u2014b"
    assert spans.exact("A cat", "the CAT!") == 1
    assert spans.f1("the black cat", "black dog cat") == pytest.approx(2 * (1 * 2 / 3) / (1 + 2 / 3))
    assert (spans.f1("", "the"), spans.f1("", "cat"), spans.f1("a b b", "b")) == (1, 0, pytest.approx(2 / 3))


def squad(directory, *answers):
    scores = scored(directory, "squadv2", *([Answers((text,)), *logprobs(logprob)] for text, logprob in answers))
    return scores, catalog.get("squadv2").aggregate(scores)


def test_squad(directory):
    # q1 has the answers "The Ada" and "Ada"; q2 has none; q3's is an article, which normalises to nothing.
    scores, estimates = squad(directory, (" ada lovelace", -1.0), ("", -2.0), ("x", -0.5))
    assert [score["exact"] for score in scores] == [0, 1, 0]
    assert [score["f1"] for score in scores] == [pytest.approx(2 / 3), 1, 0]
    values = {name: estimate.value for name, estimate in estimates.items()}
    assert values["exact"] == pytest.approx(100 / 3) and values["f1"] == pytest.approx(500 / 9)
    assert values["HasAns_f1"] == pytest.approx(100 / 3) and values["NoAns_exact"] == 100.0
    # Thresholds by the probability of no answer: q2, then q1, then q3. All answered: 2/3 + 1 + 0.
    assert values["best_f1"] == pytest.approx(500 / 9) and values["best_exact"] == pytest.approx(100 / 3)


def test_squad_says_nothing_above_the_best_threshold(directory):
    # An answer to q2 is wrong, and its probability of no answer the highest: the best threshold is below it.
    _, estimates = squad(directory, ("Ada", -3.0), ("Bea", -1.0), ("x", -0.5))
    assert estimates["exact"].value == pytest.approx(100 / 3)
    assert estimates["best_exact"].value == pytest.approx(200 / 3)
    assert estimates["best_exact"].stderr == pytest.approx(100 * math.sqrt((1 / 3) * (2 / 3) / 2))


def test_squad_an_answer_where_there_is_none_costs_what_silence_had(directory):
    # In order of their probability of no answer: q2 is answered (1 less), then q1 rightly (1 more).
    _, estimates = squad(directory, ("Ada", -1.0), ("Bea", -3.0), ("x", -0.5))
    assert estimates["best_exact"].value == pytest.approx(100 / 3)


def test_squad_without_documents_of_a_kind_has_zero_there(directory):
    _, estimates = squad(directory, ("Ada", -3.0))
    assert estimates["NoAns_f1"] == (0.0, None) and estimates["HasAns_exact"] == (100.0, None)


def test_mbpp_appends_three_tests_and_counts_passed_samples(directory):
    benchmark = catalog.get("mbpp")
    document = load(benchmark, directory).documents[0]
    answers = [Answers(("def first(n): return n", "x"))]
    tests = "assert first(0) == 1\nassert first(1) == 2\nassert first(2) == 3"
    assert benchmark.programs(document, answers) == (f"def first(n): return n\n{tests}", f"x\n{tests}")
    scores = [benchmark.score(document, [*answers, Outcomes(passed)]) for passed in ((True, False), (False, False))]
    assert benchmark.aggregate(scores).keys() == {"pass_at_1"}
    assert benchmark.aggregate(scores)["pass_at_1"].value == 0.25
    ten = [benchmark.score(document, [Answers(("",) * 10), Outcomes((True,) + (False,) * 9)])]
    assert {name: estimate.value for name, estimate in benchmark.aggregate(ten).items()} == {
        "pass_at_1": pytest.approx(0.1),
        "pass_at_10": 1.0,
    }


def test_the_pile_is_measured_by_subset(directory):
    answers = [[Loglikelihood(logprob, None, tokens)] for logprob, tokens in ((-10.0, 4), (-3.0, 2), (-2.0, 1))]
    estimates = catalog.get("pile").aggregate(scored(directory, "pile", *answers))
    # Bytes 15, 5 and 4 (é has two); words 4 (one of them after the last space), 3 and 1.
    values = {name: estimate.value for name, estimate in estimates.items()}
    assert values["nats_per_token"] == pytest.approx(15 / 7)
    assert values["bits_per_byte"] == pytest.approx(15 / math.log(2) / 24)
    assert values["word_perplexity"] == pytest.approx(math.exp(15 / 8))
    assert values["Books/bits_per_byte"] == pytest.approx(12 / math.log(2) / 19)
    assert values["Code/byte_perplexity"] == pytest.approx(math.exp(3 / 5))
    assert estimates["Code/byte_perplexity"].stderr is None


def test_documents_of_the_pile_that_name_no_subset_are_one_of_their_own():
    benchmark = catalog.get("pile")
    score = lambda subset, logprob: benchmark.score(
        {"text": "abcd", "subset": subset}, [Loglikelihood(logprob, None, 4)]
    )
    scores = [score("", -4.0), score("unnamed", -8.0)]
    values = {name: estimate.value for name, estimate in benchmark.aggregate(scores).items()}
    assert (values["/nats_per_token"], values["unnamed/nats_per_token"], values["nats_per_token"]) == (1.0, 2.0, 1.5)
    assert not [name for name in benchmark.aggregate(scores[:1]) if "/" in name]
