"""ARC, Easy and Challenge (Clark et al. 2018): science questions of schools."""

from stagjax.tasks.benchmark import Benchmark, Prepared, Split
from stagjax.tasks.multiple_choice import ACC, ACC_NORM, MultipleChoice
from stagjax.tasks.records import Document, Record, json_lines


def _document(record: Record) -> Document:
    question = record.record("question")
    choices = question.records("choices")
    texts, labels = ([choice.text(field) for choice in choices] for field in ("text", "label"))
    return _made(record, question.text("stem"), texts, labels, record.text("answerKey"))


def _prepared(record: Record) -> Document:
    # Labels are numbers there; which letters or digits they were is in no prompt.
    choices = record.record("choices")
    labels = [str(label) for label in choices.integers("label")]
    return _made(record, record.text("question"), choices.texts("text"), labels, str(record.integer("answerKey")))


def _made(record: Record, question: str, texts: list[str], labels: list[str], key: str) -> Document:
    if key not in labels:
        raise record.wrong("answerKey", f"is {key!r}; it has to be one of the choices' labels, {', '.join(labels)}")
    return {
        "id": record.text("id"),
        "question": question,
        "choices": {"text": texts, "label": labels},
        "answerKey": key,
    }


def _benchmark(name: str, title: str, documents: int, pool: int) -> Benchmark:
    return Benchmark(
        name=name,
        directory=name,
        evaluated=Split("test", (f"{title}-Test.jsonl",), json_lines(_document), documents),
        pool=Split("train", (f"{title}-Train.jsonl", f"{title}-Dev.jsonl"), json_lines(_document), pool),
        form=MultipleChoice(
            lambda document: f"Question: {document['question']}\nAnswer:",
            lambda document: document["choices"]["text"],
            lambda document: document["choices"]["label"].index(document["answerKey"]),
        ),
        metrics=(ACC_NORM, ACC),
        draw="any",
        prepared=Prepared(f"ai2_arc/{title}", "test", "train", _prepared),
        origin="https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip",
    )


BENCHMARKS = (
    _benchmark("arc_easy", "ARC-Easy", 2376, 2251),
    _benchmark("arc_challenge", "ARC-Challenge", 1172, 1119),
)
