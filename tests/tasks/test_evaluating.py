"""Benchmarks as seqio tasks: the ids of the very texts that the scorer reads, uncut, and the same metrics."""

import json

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from stagjax.data.vocabulary import ByteVocabulary, load_vocabulary, train_sentencepiece  # noqa: E402
from stagjax.errors import DataError, UserError  # noqa: E402
from stagjax.tasks import catalog  # noqa: E402
from stagjax.tasks.benchmark import load  # noqa: E402
from stagjax.tasks.encoding import request_ids  # noqa: E402
from stagjax.tasks.prepared import load_prepared  # noqa: E402
from stagjax.tasks.registry import get_mixture, get_task, task_names  # noqa: E402
from stagjax.tasks.requests import (  # noqa: E402
    GenerationRequest,
    Loglikelihood,
    LoglikelihoodRequest,
    RollingRequest,
)
from tests.tasks import official_files  # noqa: E402


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return official_files.write(tmp_path_factory.mktemp("data"))


def examples(task, split="validation"):
    return list(task.get_dataset(split=split, sequence_length=None, shuffle=False).as_numpy_iterator())


def items_of(name, directory, shots):
    benchmark = catalog.get(name)
    return benchmark.items(load(benchmark, directory), shots)


@pytest.mark.parametrize("name", catalog.all_benchmarks())
def test_examples_are_the_requests(directory, name):
    benchmark = catalog.get(name)
    task = get_task(name, directory=str(directory))
    assert set(task.splits) == {"validation", benchmark.evaluated.name}
    wanted = [
        (item, number, request)
        for item in items_of(name, directory, benchmark.shots)
        for number, request in enumerate(item.requests)
    ]
    found = examples(task, benchmark.evaluated.name)
    assert len(found) == len(wanted) > 0
    decode = ByteVocabulary().decode
    for example, (item, number, request) in zip(found, wanted, strict=True):
        assert example["request"].tolist() == [item.index, number]
        assert example["inputs"][0] == 1
        inputs, targets = decode(example["inputs"][1:]), decode(example["targets"])
        if isinstance(request, LoglikelihoodRequest):
            assert inputs + targets == request.context + request.continuation
            assert inputs == request.context.rstrip()
        elif isinstance(request, RollingRequest):
            assert (inputs, targets, example["targets"][-1]) == ("", request.text, 2)
        else:
            assert inputs == request.context
            assert targets == benchmark.form.target(item.document)
        assert example["inputs_pretokenized"].decode() == getattr(request, "context", "")


def test_shots_and_vocabulary_make_tasks_of_their_own(directory, tmp_path):
    train_sentencepiece(["Question: What of it?\nAnswer: no way\n" * 30], 290, tmp_path / "v.model")
    pieces = get_task("arc_easy", shots=2, directory=str(directory), vocabulary=str(tmp_path / "v.model"))
    plain = get_task("arc_easy", shots=2, directory=str(directory))
    assert plain is get_task("arc_easy", shots=2, directory=str(directory))
    assert pieces.name != plain.name and plain.name.startswith("arc_easy_2_shot_")
    vocabulary = load_vocabulary(str(tmp_path / "v.model"))
    item = items_of("arc_easy", directory, 2)[1]
    for example, request in zip(examples(pieces)[2:], item.requests, strict=True):
        whole = vocabulary.encode(request.context + request.continuation).tolist()
        assert example["inputs"].tolist()[1:] + example["targets"].tolist() == whole
        assert 0 < len(example["targets"]) < len(whole)


def test_white_space_at_the_end_of_a_context_is_scored_with_the_continuation():
    request = LoglikelihoodRequest("ab \n", "c")
    assert request_ids(request, ByteVocabulary()) == ([1, 100, 101], [35, 13, 102])
    assert request_ids(GenerationRequest("ab "), ByteVocabulary(), "c") == ([1, 100, 101, 35], [102])


def test_trimming_is_refused(directory):
    task = get_task("hellaswag", directory=str(directory))
    with pytest.raises(ValueError, match="sequence_length="):
        task.get_dataset(split="validation", sequence_length={"inputs": 8, "targets": 8}, shuffle=False)


def answer(before, scored):
    """Answer as a model might: each id counts, each at its place."""
    logprob = -sum((place * int(id_)) % 29 for place, id_ in enumerate((*before, *scored), 1)) / 7
    return logprob, logprob % 2 > 0.9


def evaluate(task, score_fn, **arguments):
    """Return what seqio's own evaluator makes of a task."""
    evaluator = seqio.Evaluator(task.name, seqio.EncDecFeatureConverter(pack=False), **arguments)
    metrics, _ = evaluator.evaluate(compute_metrics=True, score_fn=score_fn)
    evaluator.close()
    return metrics.result()[task.name]


def score_fn(dataset, model_feature_shapes=None):
    """Score the enumerated features of a model, in an order of its own."""
    found = []
    for index, features in dataset.as_numpy_iterator():
        before, scored = features["encoder_input_tokens"], features["decoder_target_tokens"]
        found.append((int(index), answer(before[before > 0], scored[scored > 0])))
    found = found[1::2] + found[::2]
    return [(index, logprob) for index, (logprob, _) in found], {"is_greedy": [greedy for _, (_, greedy) in found]}


SCORED = [name for name, benchmark in catalog.all_benchmarks().items() if benchmark.form.scored]


@pytest.mark.parametrize("name", SCORED)
def test_metrics_of_seqios_evaluator_are_ours(directory, name):
    benchmark = catalog.get(name)
    scores = []
    for item in items_of(name, directory, benchmark.shots):
        answers = []
        for request in item.requests:
            ids = request_ids(request, ByteVocabulary())
            answers.append(Loglikelihood(*answer(*ids), len(ids[1])))
        scores.append(benchmark.score(item.document, answers))
    wanted = {key: estimate.value for key, estimate in benchmark.aggregate(scores).items()}
    assert evaluate(get_task(name, directory=str(directory)), score_fn) == pytest.approx(wanted, rel=1e-12)
    assert set(wanted) >= {metric.name for metric in benchmark.metrics}


def test_documents_that_were_scored_in_part_are_refused(directory):
    task = get_task("hellaswag", directory=str(directory))
    assert evaluate(task, score_fn, num_examples=8)
    with pytest.raises(ValueError, match=r"hellaswag: 1 of the 4 requests of document 1 were scored; score all"):
        evaluate(task, score_fn, num_examples=5)


def test_without_flags_the_evaluator_has_no_greedy_accuracy(directory):
    plain = lambda dataset, model_feature_shapes=None: score_fn(dataset)[0]
    assert evaluate(get_task("lambada_openai", directory=str(directory)), plain).keys() == {"perplexity"}


def requests_of(dataset):
    return [tuple(example["request"].tolist()) for example in dataset.as_numpy_iterator()]


def test_get_datasets_other_arguments_keep_their_meaning(directory):
    task = get_task("hellaswag", directory=str(directory))
    get = lambda **options: requests_of(task.get_dataset(sequence_length=None, split="validation", **options))
    plain = get(shuffle=False)
    assert plain == sorted(plain) == get(shuffle=False, seed=7)
    shuffled = get(shuffle=True, seed=7)
    assert shuffled == get(shuffle=True, seed=7) != plain and sorted(shuffled) == plain == sorted(get())
    assert get(shuffle=False, num_epochs=2, seed=1) == plain * 2
    shards = [get(shuffle=False, seed=1, shard_info=seqio.ShardInfo(index, 3)) for index in range(3)]
    assert shards == [plain[index::3] for index in range(3)]
    assert get(shuffle=False, shard_info=seqio.ShardInfo(0, 1)) == plain


@pytest.mark.parametrize("name", ["winogrande", "lambada_openai"])
def test_a_split_that_is_not_there_is_refused(directory, name):
    """Also the default of seqio's get_dataset, "train": its source hands on what it is asked for."""
    with pytest.raises(UserError, match=f"unknown split of {name}.* 'train'; known: .*validation"):
        get_task(name, directory=str(directory)).get_dataset(seed=1)


def test_generation_has_no_metric_in_seqio(directory):
    assert not get_task("mbpp", directory=str(directory)).metric_fns
    assert not get_task("squadv2", directory=str(directory)).metric_fns


@pytest.mark.parametrize("group", ["superglue", "paper", "all"])
def test_mixtures_hold_their_members(directory, group):
    mixture = get_mixture(group, shots=1, directory=str(directory))
    names = {task.name.rsplit("_", 1)[0] for task in mixture.tasks}
    # MBPP has examples of its own, The Pile none: they keep their shots.
    unchanged = {"mbpp", "pile", "pile_test"}
    assert names == {name if name in unchanged else f"{name}_1_shot" for name in catalog.groups()[group]}
    assert get_mixture(group, shots=1, directory=str(directory)) is mixture


def test_a_mixture_samples_from_its_members(directory):
    mixture = get_mixture("superglue", directory=str(directory))
    dataset = mixture.get_dataset(sequence_length=None, split="validation", shuffle=False, num_epochs=1, seed=1)
    decode = ByteVocabulary().decode
    # Mixtures keep the ids alone.
    found = {decode([*example["inputs"][1:], *example["targets"]]) for example in dataset.as_numpy_iterator()}
    wanted = {
        request.context + request.continuation
        for name in catalog.SUPERGLUE
        for item in items_of(name, directory, 0)
        for request in item.requests
    }
    assert found < wanted  # Sampling ends with the first member that does.
    assert len(found) > len(catalog.SUPERGLUE) / 2


def test_data_is_read_from_the_environments_directory_when_examples_are_asked_for(directory, monkeypatch, tmp_path):
    monkeypatch.setenv("STAGJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(Exception, match=r"rte.*RTE/val.jsonl|RTE/val.jsonl is missing"):
        examples(get_task("rte"))
    monkeypatch.setenv("STAGJAX_DATA_DIR", str(directory))
    assert len(examples(get_task("rte"))) == 2


def test_unknown_tasks_and_mixtures_are_refused():
    assert {"stagjax_stdlib", "hellaswag"} <= set(task_names())
    with pytest.raises(UserError, match="unknown mixture 'superglu'; did you mean 'superglue'"):
        get_mixture("superglu")


@pytest.mark.parametrize("shots", [-1, "2", 2.0, True])
def test_shots_that_are_no_count_are_refused(shots):
    with pytest.raises(UserError, match=f"shots={shots!r} is .*; use 0 or more"):
        get_task("hellaswag", shots=shots)
    with pytest.raises(UserError, match=f"shots={shots!r} is .*; use 0 or more"):
        get_mixture("superglue", shots=shots)


def test_a_prepared_dataset_is_read_from_disk(directory, tmp_path):
    """Written by tensorflow-datasets' own writer, with the features of its own builder."""
    import tensorflow_datasets as tfds

    with pytest.raises(DataError, match="winogrande/.* is not prepared; run `tfds build winogrande`"):
        load_prepared(catalog.get("winogrande"), tmp_path)
    builder = tfds.builder("winogrande", data_dir=tmp_path, try_gcs=False)
    builder.data_path.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="winogrande", version=builder.version, data_dir=str(builder.data_path), module_name=""
    )
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=builder.info.features), max_examples_per_shard=9
    )
    wanted = load(catalog.get("winogrande"), directory)
    writer.initialize_splits(["validation", "train_xl"])
    for split, documents in (("validation", wanted.documents), ("train_xl", wanted.pool)):
        writer.add_examples(
            {split: [{**{k: d[k] for k in d if k != "answer"}, "label": int(d["answer"]) - 1} for d in documents]}
        )
    writer.close_all()
    data = load_prepared(catalog.get("winogrande"), tmp_path)
    assert (data.documents, data.pool) == (wanted.documents, wanted.pool)
    assert data.sources[0].describe() == "2 of 1,267 documents"


def test_prepared_datasets_make_the_same_prompts(directory, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from stagjax.tasks import prepared

    # What tensorflow-datasets makes of the official files, by the features of its builders.
    official = [json.loads(line) for line in official_files.FILES["arc_easy/ARC-Easy-Test.jsonl"].splitlines()]
    letters = {label: number for labels in ("ABCDE", "12345") for number, label in enumerate(labels)}
    records = {
        "arc_easy": [
            {
                "id": record["id"].encode(),
                "question": record["question"]["stem"].encode(),
                "choices": {
                    "text": np.array([c["text"].encode() for c in record["question"]["choices"]], object),
                    "label": np.array([letters[c["label"]] for c in record["question"]["choices"]]),
                },
                "answerKey": np.int64(letters[record["answerKey"]]),
            }
            for record in official
        ],
        "winogrande": [
            {**{key: value.encode() for key, value in document.items() if key != "answer"}, "label": np.int64(label)}
            for document, label in zip(load(catalog.get("winogrande"), directory).documents, (1, 0), strict=True)
        ],
        "multirc": load(catalog.get("multirc"), directory).documents,
        "record": load(catalog.get("record"), directory).documents,
        "wsc": load(catalog.get("wsc"), directory).documents,
        "boolq": load(catalog.get("boolq"), directory).documents,
        "lambada_standard": [{"passage": b"he went to the door\n"}, {"passage": " she saw\u2028the cat \n".encode()}],
        "squadv2": [
            {**document, "answers": {"text": np.array([a.encode() for a in document["answers"]], object)}}
            for document in load(catalog.get("squadv2"), directory).documents
        ],
    }

    class Builder:
        data_path = "somewhere"

        def __init__(self, name, **_):
            self.info = type("Info", (), {"full_name": name})

        def is_prepared(self):
            return self.info.full_name != "super_glue/copa"

    monkeypatch.setattr(tfds, "builder", Builder)
    for name, rows in records.items():
        monkeypatch.setattr(prepared, "_records", lambda builder, split, rows=rows: map(prepared._plain, rows))
        benchmark = catalog.get(name)
        data = load_prepared(benchmark, tmp_path)
        wanted = load(benchmark, directory)
        assert [item.requests for item in benchmark.items(data, 0)] == [
            item.requests for item in benchmark.items(wanted, 0)
        ], name
        assert [benchmark.form.target(d) for d in data.documents] == [
            benchmark.form.target(d) for d in wanted.documents
        ]
        assert data.sources[0].split == benchmark.prepared.evaluated
    with pytest.raises(DataError, match=r"copa: somewhere is not prepared; run `tfds build super_glue/copa`"):
        load_prepared(catalog.get("copa"))
    with pytest.raises(DataError, match="hellaswag is not in tensorflow-datasets as the prompts need it"):
        load_prepared(catalog.get("hellaswag"))
