"""What is asked: documents that are among their own examples are counted."""

import random

from stagjax.evaluation.questions import Task, prepare
from stagjax.tasks import catalog
from tests.tasks import official_files


def test_documents_with_themselves_among_their_examples_are_counted(tmp_path):
    """LAMBADA in OpenAI's form draws from the documents that it evaluates, as the harness does."""
    directory = official_files.write(tmp_path)
    drawn = random.Random(1234)
    wanted = sum(document in drawn.sample(range(3), 2) for document in range(3))
    assert 0 < wanted < 3
    count = lambda name, shots, **limit: prepare(Task(name, shots, **limit), directory).own_examples
    assert [count("lambada_openai", shots) for shots in (0, 2, 3)] == [0, wanted, 3]
    assert count("lambada_openai_cloze", 3, limit=2) == 2
    # What drops the evaluated document never has it.
    assert {count(name, 1) for name, benchmark in catalog.all_benchmarks().items() if benchmark.draw == "other"} == {0}
