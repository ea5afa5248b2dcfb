"""Prompts of every benchmark, written out by hand: what EleutherAI's harness makes of the same documents."""

import pytest

from stagjax.tasks import catalog
from stagjax.tasks.benchmark import load
from stagjax.tasks.requests import GenerationRequest, LoglikelihoodRequest, RollingRequest
from tests.tasks import official_files

YES_NO = (" no", " yes")
VERDICTS = ("yes", "no")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return official_files.write(tmp_path_factory.mktemp("data"))


def items(directory, name, shots=0, **kwargs):
    benchmark = catalog.get(name)
    return benchmark.items(load(benchmark, directory), shots, **kwargs)


def test_every_benchmark_has_invented_documents(directory):
    for name in catalog.all_benchmarks():
        assert items(directory, name), name


def verdicts(answer):
    return tuple(f" {answer}\nIs the answer correct? {verdict}" for verdict in VERDICTS)


CHOICES = {
    "hellaswag": [
        # Markup goes, " [title]" becomes a full stop, double spaces shrink once, the second part is capitalised.
        (
            "Baking: How to bake. Knead. Use both hands.  Then you",
            (" rest it a while.", " sing.", "  Sleep.", " leave."),
            0,
        ),
        ("Rowing: A man rows.", (" He stops.", " It rains.", " [unclosed", " Émile waves."), 3),
        ("Skiing: She skis. The end", (" a", " bb", " ccc", " dddd"), 2),
    ],
    "arc_easy": [
        ("Question: What melts?\nAnswer:", (" ice", " iron ore"), 0),
        ("Question: Which is 10°C?\nAnswer:", (" 10°C", " one", " two"), 2),
    ],
    "arc_challenge": [("Question: Why?\nAnswer:", (" so", " thus"), 1)],
    "boolq": [("It is — so.\nQuestion: is it so?\nAnswer:", YES_NO, 1)],
    "cb": [
        ("A: I doubt it.\nQuestion: it is. True, False, or Neither?\nAnswer:", (" True", " False", " Neither"), 2),
        ("It rains.\nQuestion: it is dry. True, False, or Neither?\nAnswer:", (" True", " False", " Neither"), 1),
    ],
    # Two spaces, and a text as the target: of two equal choices the first is right.
    "copa": [
        ("He ran because", ("  he was late.", "  é."), " he was late."),
        ("It broke therefore", ("  same.", "  same."), " same."),
    ],
    # Escapes in an answer are those of a Python literal; an answer that is none stays as it is.
    "multirc": [
        ("The text. \nQuestion: What of text.?\nAnswer:", verdicts("It's\tx"), 1),
        ("The text. \nQuestion: What of text.?\nAnswer:", verdicts("''' end"), 0),
        (
            "The text. \nQuestion: What of text.?\nAnswer:",
            (" A\\nIs the answer correct? yes", " A\\nIs the answer correct? no"),
            0,
        ),
    ],
    "record": [
        (
            "Paris hosts Ada Roe.\n\n  - Ada Roe leads.\n  - Paris glows.\n",
            ("   - Ada met Ada", "   - Ada Roe met Ada Roe", "   - Paris met Paris"),
            "  - Paris met Paris",
        )
    ],
    "rte": [("P.\nQuestion: H. True or False?\nAnswer:", (" True", " False"), 1)],
    "wic": [
        (
            "Sentence 1: We ran far.\nSentence 2: A run.\n"
            "Question: Is the word 'ran' used in the same way in the two sentences above?\nAnswer:",
            YES_NO,
            1,
        )
    ],
    "wsc": [
        # The span "The friend." is not in the text, so it loses its full stop; tokens are joined as they are written.
        (
            'Passage: He said"no"(once), didn\'t *he* ?\n'
            'Question: In the passage above, does the pronoun "*he*" refer to "*The friend*"?\nAnswer:',
            YES_NO,
            0,
        ),
        (
            "Passage: The dog ate *it*.\n"
            'Question: In the passage above, does the pronoun "*it*" refer to "*The dog*"?\nAnswer:',
            YES_NO,
            1,
        ),
    ],
    "lambada_openai": [
        ("They  came to", (" the\nold\u2028house,",), " the\nold\u2028house,"),
        ("", (" One",), " One"),
        ("She said,", (" \u201cno",), " \u201cno"),
    ],
    "lambada_standard": [("he went to the", (" door",), " door"), ("she saw\u2028the", (" cat",), " cat")],
    "lambada_openai_cloze": [
        ("They  came to ____. ->", (" the\nold\u2028house,",), " the\nold\u2028house,"),
        (" ____. ->", (" One",), " One"),
        ("She said, ____. ->", (" \u201cno",), " \u201cno"),
    ],
}


@pytest.mark.parametrize("name", CHOICES)
def test_contexts_continuations_and_targets(directory, name):
    found = items(directory, name)
    assert len(found) == len(CHOICES[name])
    for item, (context, continuations, target) in zip(found, CHOICES[name], strict=True):
        assert item.requests == tuple(LoglikelihoodRequest(context, text) for text in continuations)
        assert catalog.get(name).form.target(item.document) == target


def test_winogrande_scores_one_text_under_two_contexts(directory):
    first, second = items(directory, "winogrande")
    assert first.requests == (
        LoglikelihoodRequest("Ann met Bea because Ann", " was  late."),
        LoglikelihoodRequest("Ann met Bea because Bea", " was  late."),
    )
    assert second.requests == (
        LoglikelihoodRequest("It fell on the cup", " "),
        LoglikelihoodRequest("It fell on the mat", " "),
    )


def test_squad_asks_for_a_line_and_for_the_probability_of_no_answer(directory):
    first, second, _ = items(directory, "squadv2")
    context = "Title: The_Title\n\nBackground:  Some text.\n\nQuestion: Who?\n\nAnswer:"
    assert first.requests == (
        GenerationRequest(context, stop=("\n",)),
        LoglikelihoodRequest(context, " unanswerable"),
    )
    target = catalog.get("squadv2").form.target
    assert (target(first.document), target(second.document)) == (" The Ada", " unanswerable")


def test_mbpp_evaluates_tasks_11_to_510_and_executes_their_first_three_tests(directory):
    tests = "assert first(0) == 1\nassert first(1) == 2\nassert first(2) == 3"
    first, last = items(directory, "mbpp")
    prompt = (
        "You are an expert Python programmer, and here is your task: Write first. Your code should pass these tests:"
        f"\n\n{tests}\n[BEGIN]\n"
    )
    assert first.requests == (GenerationRequest(prompt, stop=("[DONE]",)),)
    assert (first.document["task_id"], last.document["task_id"]) == (11, 510)
    (sampled, _) = items(directory, "mbpp", samples=5, temperature=0.8)
    assert sampled.requests == (GenerationRequest(prompt, ("[DONE]",), temperature=0.8, samples=5),)


def test_the_pile_asks_for_whole_documents_with_their_subsets(directory):
    found = items(directory, "pile")
    assert [item.requests for item in found] == [
        (RollingRequest(text),) for text in ("One two\nthrée ", "x = 1", "Four")
    ]
    assert [item.document["subset"] for item in found] == ["Books", "Code", "Books"]
    assert items(directory, "pile_test")[0].document["subset"] == ""


EXAMPLES = {
    # name: (position in the pool, the example's text)
    "hellaswag": (3, "Act 13: A13. B x\n\n"),
    "arc_easy": (3, "Question: Is it 3?\nAnswer: no\n\n"),
    "cb": (3, "P3.\nQuestion: h3. True, False, or Neither?\nAnswer: True\n\n"),
    "copa": (1, "P1 therefore  bb.\n\n"),
    # The harness calls a wrong answer (label 0) right.
    "multirc": (1, "A tale.\nQuestion: What of tale.?\nAnswer: Bad\nIs the answer correct? yes\n\n"),
    "record": (1, "Rome 6.\n\n   - Rome fell\n\n"),
    "rte": (1, "P1.\nQuestion: H1. True or False?\nAnswer: True\n\n"),
    # Nothing comes after the gap: no blank line either.
    "winogrande": (3, "He sat on the mat"),
    "squadv2": (3, "Title: T2\n\nBackground: More.\n\nQuestion: Q3?\n\nAnswer:  yes\n\n"),
    "lambada_standard": (1, "d e  f\n\n"),
    # Without a pool, examples come from the evaluated documents themselves.
    "lambada_openai": (1, "  One\n\n"),
    "mbpp": (
        0,
        "You are an expert Python programmer, and here is your task: Write a function to find the similar elements "
        "from the given two tuple lists. Your code should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
        "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)\n"
        "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)\n[BEGIN]\n"
        "def similar_elements(test_tup1, test_tup2):\r\n  res = tuple(set(test_tup1) & set(test_tup2))\r\n"
        "  return (res) \n[DONE]\n\n",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_shot(directory, name):
    position, text = EXAMPLES[name]
    plain, shot = items(directory, name)[0], items(directory, name, shots=1)[0]
    assert shot.examples == (position,)
    assert [request.context for request in shot.requests] == [text + request.context for request in plain.requests]


def test_several_shots_follow_each_other_in_the_order_of_their_draw(directory):
    shot = items(directory, "hellaswag", shots=2)[0]
    assert shot.examples == (3, 0)
    assert shot.requests[0].context.startswith("Act 13: A13. B x\n\nAct 10: A10. B y\n\nBaking: ")


def test_a_limit_changes_no_prompt(directory):
    assert items(directory, "hellaswag", shots=2, limit=2) == items(directory, "hellaswag", shots=2)[:2]
