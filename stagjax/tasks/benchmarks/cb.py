"""CommitmentBank (de Marneffe et al. 2019): does a text entail a statement, contradict it, or neither?"""

from stagjax.tasks.benchmarks import superglue
from stagjax.tasks.multiple_choice import ACC, MultipleChoice
from stagjax.tasks.records import Document, Record
from stagjax.tasks.statistics import Estimate, Metric, Scores, macro_f1

LABELS = ("entailment", "contradiction", "neutral")


def _document(record: Record) -> Document:
    return {
        "premise": record.text("premise"),
        "hypothesis": record.text("hypothesis"),
        "idx": record.integer("idx"),
        "label": record.label("label", LABELS),
    }


def _f1(scores: Scores) -> Estimate:
    return macro_f1([score["gold"] for score in scores], [score["predicted"] for score in scores], len(LABELS))


BENCHMARKS = (
    superglue.benchmark(
        "cb",
        "CB",
        MultipleChoice(
            lambda document: (
                f"{document['premise']}\nQuestion: {document['hypothesis']}. True, False, or Neither?\nAnswer:"
            ),
            ("True", "False", "Neither"),
            lambda document: document["label"],
        ),
        _document,
        (56, 250),
        metrics=(ACC, Metric("f1", _f1)),
    ),
)
