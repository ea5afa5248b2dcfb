"""MBPP (Austin et al. 2021): small Python functions, judged by executing three tests each."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from stagjax.tasks import prompts
from stagjax.tasks.benchmark import Benchmark, Split
from stagjax.tasks.records import Document, Record, json_lines
from stagjax.tasks.requests import Answers, GenerationRequest, Outcomes
from stagjax.tasks.statistics import mean_metric, pass_at_k

STOP = "[DONE]"
TESTED = range(11, 511)  # Task ids of the test split, by the paper.
K = (1, 10, 100)
# The paper's prompt has tasks 2, 3 and 4 as its examples.
EXAMPLES = (
    {
        "task_id": 2,
        "text": "Write a function to find the similar elements from the given two tuple lists.",
        "code": "def similar_elements(test_tup1, test_tup2):\r\n"
        "  res = tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) ",
        "test_list": [
            "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
            "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
            "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
        ],
    },
    {
        "task_id": 3,
        "text": "Write a python function to identify non-prime numbers.",
        "code": "import math\r\ndef is_not_prime(n):\r\n    result = False\r\n"
        "    for i in range(2,int(math.sqrt(n)) + 1):\r\n        if n % i == 0:\r\n            result = True\r\n"
        "    return result",
        "test_list": [
            "assert is_not_prime(2) == False",
            "assert is_not_prime(10) == True",
            "assert is_not_prime(35) == True",
        ],
    },
    {
        "task_id": 4,
        "text": "Write a function to find the largest integers from a given list of numbers using heap queue "
        "algorithm.",
        "code": "import heapq as hq\r\ndef heap_queue_largest(nums,n):\r\n  largest_nums = hq.nlargest(n, nums)\r\n"
        "  return largest_nums",
        "test_list": [
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]",
        ],
    },
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """A description and three tests; the answer is the program up to the stop string."""

    scored: ClassVar[bool] = False

    def example(self, document: Document) -> str:
        """Return the task with its program."""
        return prompts.example(_question(document), f"{document['code']}\n{STOP}", before_answer="")

    def requests(self, document: Document, examples: str) -> tuple[GenerationRequest, ...]:
        """Return one request for a program."""
        return (GenerationRequest(examples + _question(document), stop=(STOP,)),)

    def target(self, document: Document) -> str:
        """Return the tests: they, not the given program, say what is right."""
        return "\n".join(document["test_list"][:3])

    def programs(self, document: Document, answers: Sequence[Answers]) -> tuple[str, ...]:
        """Return what to execute for each sample: the answer as it is, then the tests."""
        return tuple(f"{text}\n{self.target(document)}" for text in answers[0].texts)

    def score(self, document: Document, answers: Sequence[Answers | Outcomes]) -> dict[str, Any]:
        """Return the samples that passed, and pass@k for each k up to their number."""
        passed = answers[-1].passed
        scores = {f"pass_at_{k}": pass_at_k(len(passed), sum(passed), k) for k in K if k <= len(passed)}
        return {**scores, "samples": len(passed), "passed": sum(passed)}


def _question(document: Document) -> str:
    tests = "\n".join(document["test_list"][:3])
    return (
        f"You are an expert Python programmer, and here is your task: {document['text']} Your code should pass these "
        f"tests:\n\n{tests}\n[BEGIN]\n"
    )


def _document(record: Record) -> Document:
    return {
        "task_id": record.integer("task_id"),
        "text": record.text("text"),
        "code": record.text("code"),
        "test_list": record.texts("test_list", at_least=3),
    }


def _read(path: pathlib.Path) -> Iterator[Document]:
    yield from (document for document in json_lines(_document)(path) if document["task_id"] in TESTED)


FORM = Programs()
BENCHMARKS = (
    Benchmark(
        name="mbpp",
        directory="mbpp",
        evaluated=Split("test", ("mbpp.jsonl",), _read, 500),
        pool=EXAMPLES,
        form=FORM,
        metrics=tuple(mean_metric(f"pass_at_{k}", optional=k > 1) for k in K),
        draw="first",
        shots=3,
        programs=FORM.programs,
        origin="https://github.com/google-research/google-research/tree/master/mbpp",
    ),
)
