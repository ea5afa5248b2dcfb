"""Files of benchmarks: which are read, what is said of them, and what a new benchmark takes."""

import gzip
import hashlib
import json

import pytest
import zstandard

from stagjax.errors import DataError, UserError
from stagjax.tasks import catalog
from stagjax.tasks.benchmark import Benchmark, Split, find, load
from stagjax.tasks.inventory import inventory
from stagjax.tasks.multiple_choice import ACC, MultipleChoice
from stagjax.tasks.records import json_lines, read_bytes
from stagjax.tasks.requests import Loglikelihood, LoglikelihoodRequest
from tests.tasks import official_files


@pytest.fixture
def directory(tmp_path):
    return official_files.write(tmp_path)


def mood(name="mood", **split):
    """Return a new benchmark: all that one takes."""

    def document(record):
        return {"text": record.text("text"), "label": record.label("label", ("bad", "good"))}

    return Benchmark(
        name=name,
        directory="mood",
        evaluated=Split("test", ("test.jsonl",), json_lines(document), **split),
        pool=None,
        form=MultipleChoice(lambda d: f"{d['text']}\nMood:", ("bad", "good"), lambda d: d["label"]),
        metrics=(ACC,),
    )


def mood_file(directory):
    path = directory / "mood/test.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "Rain.", "label": "bad"}\n\n{"text": "Sun\u2028shine.", "label": 1}\n')
    return path


def test_a_new_benchmark_is_found_prompted_and_scored(directory, monkeypatch):
    monkeypatch.setattr(catalog, "_REGISTERED", {})
    mood_file(directory)
    catalog.register(mood())
    (benchmark,) = catalog.select(["mood"])
    assert "mood" in catalog.groups()["all"]
    data = load(benchmark, directory)
    items = benchmark.items(data, shots=1)
    assert items[0].requests == (
        LoglikelihoodRequest("Sun\u2028shine.\nMood: good\n\nRain.\nMood:", " bad"),
        LoglikelihoodRequest("Sun\u2028shine.\nMood: good\n\nRain.\nMood:", " good"),
    )
    answers = [Loglikelihood(-1.0, False, 3), Loglikelihood(-2.0, False, 4)]
    scores = [benchmark.score(item.document, answers) for item in items]
    assert benchmark.aggregate(scores)["acc"] == (0.5, 0.5)
    with pytest.raises(ValueError, match="'mood' already"):
        catalog.register(mood())


@pytest.mark.parametrize(("name", "file", "read"), [
    ("winogrande", "winogrande/train_xl.jsonl", "winogrande/train_l.jsonl"),
    ("arc_easy", "arc_easy/ARC-Easy-Train.jsonl", "arc_easy/ARC-Easy-Dev.jsonl"),
])  # fmt: skip
def test_the_official_pool_comes_first_and_another_is_a_stand_in(directory, name, file, read):
    benchmark = catalog.get(name)
    assert load(benchmark, directory).sources[1].path == str(directory / read)
    (directory / file).write_bytes((directory / read).read_bytes())
    assert load(benchmark, directory).sources[1].path == str(directory / file)


def test_hashes_are_checked_and_partial_files_are_called_partial(directory):
    path = mood_file(directory)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = [
        load(mood(documents=documents, sha256=sha256), directory).sources[0]
        for documents, sha256 in ((None, None), (2, digest), (2, "0" * 64), (3000, digest))
    ]
    assert [source.verified for source in found] == [None, True, False, None]
    assert [source.describe() for source in found] == [
        "2 documents",
        "2 documents, the official file",
        "2 documents, not the official file (its hash differs)",
        "2 of 3,000 documents",
    ]
    assert found[0].sha256 == digest


def test_a_pool_is_read_only_where_it_is_needed(directory):
    (directory / "superglue/RTE/train.jsonl").unlink()
    assert len(load(catalog.get("rte"), directory, pool=False).documents) == 1
    with pytest.raises(DataError, match=r"superglue/RTE/train.jsonl is missing \(rte, train split\); put it there"):
        load(catalog.get("rte"), directory)


def test_too_many_shots_name_how_many_there_are(directory):
    benchmark = catalog.get("mbpp")
    with pytest.raises(UserError, match="shots=4 needs 4 examples to draw from, and there are 3; use 3 or fewer"):
        benchmark.items(load(benchmark, directory), shots=4)
    with pytest.raises(UserError, match="shots=1 needs 1 examples to draw from, and there are 0; use 0 or fewer"):
        catalog.get("pile").items(load(catalog.get("pile"), directory), shots=1)


def test_rules_of_drawing_are_the_harness_rules():
    """Without a test split one more is drawn, and the evaluated document dropped."""
    rules = {name: benchmark.draw for name, benchmark in catalog.all_benchmarks().items()}
    with_test = {name for name, benchmark in catalog.all_benchmarks().items() if benchmark.evaluated.name == "test"}
    assert {name for name, rule in rules.items() if rule != "other"} == with_test | {"pile"}
    assert [name for name, rule in rules.items() if rule == "first"] == ["mbpp"]


def test_names_and_groups():
    assert [benchmark.name for benchmark in catalog.select(["cb", "superglue"])][:3] == ["cb", "boolq", "copa"]
    assert len(catalog.select(["paper", "superglue"])) == len(catalog.PAPER)
    with pytest.raises(UserError, match="unknown benchmark 'helaswag'; did you mean 'hellaswag'"):
        catalog.select(["helaswag"])


HELLASWAG, RECORD, SQUAD = "hellaswag/hellaswag_val.jsonl", "superglue/ReCoRD/val.jsonl", "squadv2/dev-v2.0.json"
ARC, LABELS, MBPP = "arc_easy/ARC-Easy-Test.jsonl", "winogrande/dev-labels.lst", "mbpp/mbpp.jsonl"
RTE, WSC = "superglue/RTE/val.jsonl", "superglue/WSC/val.jsonl"
FAULTS = {
    # file, what is replaced by what, what is said of it
    "not JSON": (ARC, '"t2"', '"t2', r"ARC-Easy-Test.jsonl:2: not JSON \(.* at column"),
    "no object": (ARC, "{", "7 #", r"ARC-Easy-Test.jsonl:1: not JSON"),
    "number": (
        MBPP,
        '{"text": "Write last.',
        '7\n{"text": "Write last.',
        "mbpp.jsonl:3: the record is 7; it has to be",
    ),
    "digits": (
        RTE,
        '"idx": 1',
        f'"idx": {5000 * "9"}',
        "RTE/val.jsonl:.*: not JSON of a benchmark .a number of thousands",
    ),
    "missing": (HELLASWAG, '"ctx_b"', '"ctx_c"', "_val.jsonl:1: field 'ctx_b' is missing; the object has ind, "),
    "type": (RTE, '"H."', "7", "RTE/val.jsonl:1: field 'hypothesis' is 7; it has to be a string"),
    "integer": (RTE, '"idx": 1', '"idx": true', "field 'idx' is true; it has to be an integer"),
    "name": ("superglue/CB/val.jsonl", "neutral", "maybe", "field 'label' is \"maybe\"; it has to be one of entail"),
    "range": (HELLASWAG, '"label": 3', '"label": 4', r"_val.jsonl:2: field 'label' is 4, outside 0\.\.3"),
    "key": (ARC, '"answerKey": "3"', '"answerKey": "4"', "jsonl:2: field 'answerKey' is '4'; .* labels, 1, 2, 3"),
    "nested": (RECORD, '"end": 4', '"end": null', r"field 'passage.entities\[0\].end' is null"),
    "list": (RECORD, '"qas": [', '"qas": 3, "x": [', "field 'qas' is 3; it has to be a list"),
    "gap": ("winogrande/dev.jsonl", "on the _", "on the mat", "dev.jsonl:2: field 'sentence' has no gap"),
    "other label": (
        LABELS,
        "2\n1",
        "2\n2",
        "dev-labels.lst:2: the label is '2', and field 'answer' in dev.jsonl is '1'",
    ),
    "too few labels": (LABELS, "2\n1\n", "2\n", "dev-labels.lst: 1 labels for the 2 documents of dev.jsonl"),
    "too few tests": (MBPP, ', "assert first(2) == 3"', "", "jsonl:2: field 'test_list' has 2 entries; .* least 3"),
    "deep": (
        SQUAD,
        '"question": "When?"',
        '"q": 1',
        r"json: field 'data\[0\].paragraphs\[0\].qas\[1\].question' is mis",
    ),
    "surrogate": (RTE, '"H."', '"\\ud800"', "field 'hypothesis' has half of a surrogate pair"),
    "word": (
        WSC,
        '"span2_index": 11',
        '"span2_index": 99',
        "field 'target.span2_index' is 99, and the text has 13 words",
    ),
    "empty": ("superglue/COPA/val.jsonl", '"É."', '""', "COPA/val.jsonl:1: field 'choice2' is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_data_is_one_line_with_file_line_and_field(directory, fault):
    file, old, new, message = FAULTS[fault]
    path = directory / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    name = next(n for n, b in catalog.all_benchmarks().items() if file.startswith(b.directory + "/"))
    with pytest.raises(DataError, match=message) as caught:
        load(catalog.get(name), directory)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_files_without_documents(directory):
    path = directory / "superglue/RTE/val.jsonl"
    path.write_bytes(b'{"premise": "\xff"}\n')
    with pytest.raises(DataError, match="RTE/val.jsonl:1: not UTF-8 at byte 13"):
        load(catalog.get("rte"), directory)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="RTE/val.jsonl: no documents; download rte again"):
        load(catalog.get("rte"), directory)


def test_a_compressed_file_that_is_cut_off_or_damaged_is_refused(directory):
    path = directory / "pile/val.jsonl.zst"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(DataError, match="val.jsonl.zst: the zstd frame is cut off"):
        load(catalog.get("pile"), directory)
    path.write_bytes(b"no zstd" + content)
    with pytest.raises(DataError, match="val.jsonl.zst: damaged zstd"):
        load(catalog.get("pile"), directory)


@pytest.mark.parametrize("name", ["lambada_openai", "lambada_standard", "hellaswag", "squadv2", "pile", "winogrande"])
def test_a_byte_order_mark_is_none_of_a_text(directory, name):
    wanted = load(catalog.get(name), directory).documents
    path = find(catalog.get(name), catalog.get(name).evaluated, directory)
    mark = "\ufeff".encode()
    content = read_bytes(path)
    path.write_bytes(zstandard.compress(mark + content) if path.suffix == ".zst" else mark + content)
    assert load(catalog.get(name), directory).documents == wanted


def test_the_pile_is_read_as_its_shards_are(directory):
    wanted = load(catalog.get("pile"), directory).documents
    path = directory / "pile/val.jsonl.zst"
    records = [json.loads(line) for line in read_bytes(path).split(b"\n") if line]
    path.unlink()
    as_text = [record | {"meta": json.dumps(record["meta"])} for record in records]
    content = "".join(json.dumps(record) + "\r\n" for record in as_text).encode()
    path.with_suffix(".gz").write_bytes(gzip.compress(content))
    assert load(catalog.get("pile"), directory).documents == wanted
    path.with_suffix(".gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match="val.jsonl.gz: the gzip member is cut off; download the file again"):
        load(catalog.get("pile"), directory)
    path.with_suffix(".gz").write_bytes(gzip.compress(b'{"text": "a", "meta": {"pile_set_name": 5}}'))
    assert [document["subset"] for document in load(catalog.get("pile"), directory).documents] == [""]


def test_the_inventory_goes_on_past_what_is_missing(directory):
    (directory / "superglue/CB/val.jsonl").write_text("{}\n")
    (directory / "squadv2/train-v2.0.json").unlink()
    rows = {row["name"]: row for row in inventory(catalog.select(["all"]), directory)}
    assert rows.keys() == catalog.all_benchmarks().keys()
    json.dumps(list(rows.values()))
    assert rows["cb"]["documents"] is None and "field 'premise' is missing" in rows["cb"]["problem"]
    assert rows["squadv2"]["documents"]["summary"] == "3 of 11,873 documents"
    assert "train-v2.0.json is missing" in rows["squadv2"]["examples_problem"]
    assert (rows["mbpp"]["examples"], rows["mbpp"]["shots"], rows["mbpp"]["executes_programs"]) == (3, 3, True)
    assert rows["hellaswag"]["groups"] == ["paper", "all"]
