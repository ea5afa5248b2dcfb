"""Invented documents in the official formats of all benchmarks, a few each; written into a directory for tests."""

import json
import pathlib

import zstandard


def _lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _hellaswag(index, activity, first, second, endings, label):
    return {
        "ind": index,
        "activity_label": activity,
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}",
        "split": "val",
        "split_type": "indomain",
        "label": label,
        "endings": endings,
        "source_id": f"wikihow~{index}",
    }


def _arc(name, stem, texts, labels, key):
    choices = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return {"id": name, "question": {"stem": stem, "choices": choices}, "answerKey": key}


def _winogrande(sentence, option1, option2, answer):
    return {"qID": sentence[:4], "sentence": sentence, "option1": option1, "option2": option2, "answer": answer}


def _wsc(text, span1, index1, span2, index2, idx, label):
    target = {"span1_text": span1, "span1_index": index1, "span2_text": span2, "span2_index": index2}
    return {"text": text, "target": target, "idx": idx, "label": label}


def _multirc(idx, text, *answers):
    listed = [{"text": answer, "idx": number, "label": label} for number, (answer, label) in enumerate(answers)]
    question = {"question": f"What of {text.split()[1]}?", "idx": 7, "answers": listed}
    return {"idx": idx, "version": 1.1, "passage": {"text": text, "questions": [question]}}


def _record(idx, text, entities, *queries):
    spans = [{"start": text.index(name), "end": text.index(name) + len(name) - 1} for name in entities]
    qas = [
        {"query": query, "idx": 10 * idx + n, "answers": [{"text": answer, "start": 0, "end": 1} for answer in answers]}
        for n, (query, answers) in enumerate(queries)
    ]
    return {"source": "CNN", "idx": idx, "passage": {"text": text, "entities": spans}, "qas": qas}


def _squad(*articles):
    data = []
    for title, context, questions in articles:
        qas = [
            {
                "id": name,
                "question": question,
                "answers": [{"text": answer, "answer_start": 0} for answer in answers],
                "is_impossible": not answers,
            }
            for name, question, answers in questions
        ]
        data.append({"title": title, "paragraphs": [{"context": context, "qas": qas}]})
    return json.dumps({"version": "v2.0", "data": data})


def _mbpp(task_id, name):
    tests = [f"assert {name}({n}) == {n + 1}" for n in range(3)]
    return {
        "text": f"Write {name}.",
        "code": f"def {name}(n):\r\n  return n + 1",
        "task_id": task_id,
        "test_setup_code": "",
        "test_list": tests,
        "challenge_test_list": [],
    }


def _pile(text, subset):
    return {"text": text, "meta": {"pile_set_name": subset}}


HELLASWAG = (
    _hellaswag(
        3,
        "Baking",
        "[header] How to bake [title] Knead. [step] Use  both hands.   ",
        "then YOU",
        [" rest it [substeps] a while. ", "sing.", "[title] Sleep.", "leave."],
        0,
    ),
    _hellaswag(4, "Rowing", "A man rows.", "", ["He stops.", "It  rains.", "[unclosed", "Émile waves."], 3),
    _hellaswag(5, "Skiing", "She skis.", "the end", ["a", "bb", "ccc", "dddd"], 2),
)
FILES = {
    "hellaswag/hellaswag_val.jsonl": _lines(*HELLASWAG),
    "hellaswag/hellaswag_train.jsonl": _lines(
        *(_hellaswag(n, f"Act {n}", f"A{n}.", "b", ["w", "x", "y", "z"], n % 4) for n in range(10, 16))
    ),
    "arc_easy/ARC-Easy-Test.jsonl": _lines(
        _arc("t1", "What melts?", ["ice", "iron ore"], ["A", "B"], "A"),
        _arc("t2", "Which is 10°C?", ["10°C", "one", "two"], ["1", "2", "3"], "3"),
    ),
    "arc_easy/ARC-Easy-Dev.jsonl": _lines(
        *(_arc(f"d{n}", f"Is it {n}?", ["yes", "no"], ["1", "2"], "2") for n in range(4))
    ),
    "arc_challenge/ARC-Challenge-Test.jsonl": _lines(_arc("t", "Why?", ["so", "thus"], ["A", "B"], "B")),
    "arc_challenge/ARC-Challenge-Train.jsonl": _lines(_arc("d", "How?", ["x", "y"], ["A", "B"], "A")),
    "winogrande/dev.jsonl": _lines(
        _winogrande("Ann met Bea because _ was  late. ", "Ann", "Bea", "2"),
        _winogrande("It fell on the _", "cup", "mat", "1"),
    ),
    "winogrande/dev-labels.lst": "2\n1\n",
    "winogrande/train_l.jsonl": _lines(
        *(_winogrande(f"Dan {n} saw Eva so _ left{n}.", "Dan", "Eva", "1") for n in range(3)),
        _winogrande("He sat on the _", "cup", "mat", "2"),
    ),
    "superglue/BoolQ/val.jsonl": _lines({"question": "is it so", "passage": "It is — so.", "idx": 3, "label": True}),
    "superglue/BoolQ/train.jsonl": _lines(
        {"question": "do cats bark", "passage": "Cats meow.", "idx": 0, "label": False},
        {"question": "is it so", "passage": "It is — so.", "idx": 3, "label": True},
    ),
    "superglue/CB/val.jsonl": _lines(
        {"premise": "A: I doubt it.", "hypothesis": "it is", "label": "neutral", "idx": 1},
        {"premise": "It rains.", "hypothesis": "it is dry", "label": "contradiction", "idx": 2},
    ),
    "superglue/CB/train.jsonl": _lines(
        *({"premise": f"P{n}.", "hypothesis": f"h{n}", "label": "entailment", "idx": n} for n in range(5))
    ),
    "superglue/COPA/val.jsonl": _lines(
        {"premise": "He ran. ", "choice1": "He was late.", "choice2": "É.", "question": "cause", "label": 0, "idx": 5},
        {"premise": "It broke!", "choice1": "Same.", "choice2": "Same.", "question": "effect", "label": 1, "idx": 6},
    ),
    "superglue/COPA/train.jsonl": _lines(
        *(
            {"premise": f"P{n}.", "choice1": "Aa.", "choice2": "Bb.", "question": "effect", "label": 1, "idx": n}
            for n in range(3)
        )
    ),
    "superglue/MultiRC/val.jsonl": _lines(_multirc(2, "The text. ", ("It's\\tx", 1), ("''' end", 0), ("A\\", 0))),
    "superglue/MultiRC/train.jsonl": _lines(_multirc(9, "A tale.", ("Good", 1), ("Bad", 0), ("Fair", 0))),
    "superglue/RTE/val.jsonl": _lines({"premise": "P.", "hypothesis": "H.", "label": "not_entailment", "idx": 1}),
    "superglue/RTE/train.jsonl": _lines(
        *({"premise": f"P{n}.", "hypothesis": f"H{n}.", "label": "entailment", "idx": n} for n in range(3))
    ),
    "superglue/WiC/val.jsonl": _lines(
        {
            "word": "run",
            "sentence1": "We ran far.",
            "sentence2": "A run.",
            "idx": 4,
            "label": True,
            "start1": 3,
            "end1": 6,
            "start2": 2,
            "end2": 5,
            "version": 1.1,
        }
    ),
    "superglue/WiC/train.jsonl": _lines(
        *(
            {
                "word": "at",
                "sentence1": f"at {n}",
                "sentence2": "at",
                "idx": n,
                "label": False,
                "start1": 0,
                "end1": 2,
                "start2": 0,
                "end2": 2,
                "version": 1.1,
            }
            for n in range(3)
        )
    ),
    "superglue/WSC/val.jsonl": _lines(
        _wsc('He said " no " ( once ) , did n\'t he ?', "The friend.", 0, "he", 11, 1, False),
        _wsc("The dog ate it .", "the dog", 0, "it", 3, 2, True),
    ),
    "superglue/WSC/train.jsonl": _lines(*(_wsc(f"Bob {n} ate it .", "Bob", 0, "it", 3, n, True) for n in range(3))),
    "superglue/ReCoRD/val.jsonl": _lines(
        _record(
            1,
            "Paris hosts Ada Roe.\n@highlight\nAda Roe leads\n@highlight\nParis glows",
            ("Paris", "Ada Roe", "Ada"),
            ("@placeholder met @placeholder", ("the Ada Roe", "Paris")),
        )
    ),
    "superglue/ReCoRD/train.jsonl": _lines(
        *(_record(n, f"Rome {n}.", ("Rome",), ("@placeholder fell", ("Rome",))) for n in range(5, 8))
    ),
    "lambada/lambada_test.jsonl": _lines(
        {"text": "They  came to the\nold\u2028house,"}, {"text": "One"}, {"text": "She said, \u201cno"}
    ),
    "lambada/lambada_test_plain_text.txt": "he went to the door\n she saw\u2028the cat \n",
    "lambada/lambada_development_plain_text.txt": "a b c\nd e f\n",
    "squadv2/dev-v2.0.json": _squad(
        ("The_Title", " Some text.", [("q1", "Who?", ["The Ada", "Ada"]), ("q2", "When?", []), ("q3", "Why?", ["the"])])
    ),
    "squadv2/train-v2.0.json": _squad(
        ("T2", "More.", [(f"p{n}", f"Q{n}?", ["yes"] if n % 2 else []) for n in range(4)])
    ),
    "mbpp/mbpp.jsonl": _lines(
        *(_mbpp(n, name) for n, name in ((3, "early"), (11, "first"), (510, "last"), (511, "late")))
    ),
}


def write(directory: pathlib.Path, files=FILES) -> pathlib.Path:
    """Write the files below a directory, and The Pile's compressed ones; return the directory."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    pile = directory / "pile"
    pile.mkdir(exist_ok=True)
    frames = [_lines(_pile("One two\nthrée ", "Books")), _lines(_pile("x = 1", "Code"), _pile("Four", "Books"))]
    (pile / "val.jsonl.zst").write_bytes(b"".join(zstandard.compress(frame.encode()) for frame in frames))
    (pile / "test.jsonl.zst").write_bytes(zstandard.compress(_lines({"text": "No subset"}).encode()))
    return directory
