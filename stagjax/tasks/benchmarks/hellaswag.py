"""HellaSwag (Zellers et al. 2019): which of four endings goes on.

tensorflow-datasets has it too, but without the border between `ctx_a` and `ctx_b`, which the prompt needs.
"""

import re

from stagjax.tasks.benchmark import Benchmark, Split
from stagjax.tasks.multiple_choice import ACC, ACC_NORM, MultipleChoice
from stagjax.tasks.records import Document, Record, json_lines


def _cleaned(text: str) -> str:
    # Brackets are what is left of WikiHow's markup. One pass over double spaces, as the harness does it.
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _document(record: Record) -> Document:
    endings = record.texts("endings", at_least=1)
    # capitalize() also puts the rest of ctx_b into lower case.
    context = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
    return {
        **record.value,
        "label": record.integer("label", 0, len(endings) - 1),
        "query": _cleaned(f"{record.text('activity_label')}: {context}"),
        "choices": [_cleaned(ending) for ending in endings],
    }


BENCHMARKS = (
    Benchmark(
        name="hellaswag",
        directory="hellaswag",
        evaluated=Split(
            "validation",
            ("hellaswag_val.jsonl",),
            json_lines(_document),
            10042,
            "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        ),
        pool=Split(
            "train",
            ("hellaswag_train.jsonl", "hellaswag_fewshot_pool*.jsonl"),
            json_lines(_document),
            39905,
            "dae5e69249868cb9fe4e23ff925c60b66169564cfb7072d793cd7356a2b69f8d",
        ),
        form=MultipleChoice(
            lambda document: document["query"],
            lambda document: document["choices"],
            lambda document: document["label"],
        ),
        metrics=(ACC_NORM, ACC),
        origin="https://github.com/rowanz/hellaswag/tree/master/data",
    ),
)
