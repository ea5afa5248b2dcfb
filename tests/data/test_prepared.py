"""Prepared data in an experiment: the same rows, the same identity, and refused where they are not what is wanted."""

import dataclasses
import json

import numpy as np
import pytest

from stagjax.config import DataConfig
from stagjax.data.corpus import documents, load_corpus
from stagjax.data.layout import list_shards
from stagjax.data.loader import RowLoader, validation_batches
from stagjax.data.manifest import Manifest, differences
from stagjax.data.packing import Rows
from stagjax.data.prepared import open_prepared, verify
from stagjax.data.preparing import Settings, prepare
from stagjax.errors import UserError
from tests.data.pile import compress, lines, write_pile
from tests.data.test_preparing import Watcher


def make(pile, output, row_length=32):
    prepare(list_shards(str(pile), None), Settings("bytes", row_length, 0, False), output, Watcher())
    return DataConfig("prepared", str(output), "prepared", row_length)


@pytest.fixture
def data(tmp_path):
    corpus = write_pile(tmp_path / "in", shards=2)
    return make(tmp_path / "in", tmp_path / "out"), corpus


def test_batches_are_those_of_the_same_rows_in_memory(data):
    corpus = load_corpus(data[0], 259)
    everything = corpus.train.select(slice(None))
    assert isinstance(everything, Rows) and everything.num_rows == corpus.train.num_rows > 50
    stored, held = (RowLoader(rows, 8, seed=3, own=np.arange(4, 8)) for rows in (corpus.train, everything))
    for step in (0, 7, 100):
        for name, array in stored.batch(step).items():
            np.testing.assert_array_equal(array, held.batch(step)[name], err_msg=name)


def test_validation_batches_tell_each_rows_subset(data):
    corpus = load_corpus(data[0], 259)
    batches = list(validation_batches(corpus.validation, 16, 50))
    rows = corpus.validation.select(np.arange(50) * corpus.validation.num_rows // 50)
    subsets = np.concatenate([batch["subsets"] for batch in batches])
    np.testing.assert_array_equal(subsets[:50], rows.subsets_R)
    assert set(subsets[:50]) == {0, 1, 2} and len(subsets) == 64 and not subsets[50:].any()
    assert corpus.subsets == ("Github", "Gutenberg (PG-19)", "Wikipedia (en)")


def test_the_report_counts_what_there_is(data):
    config, texts = data
    corpus = load_corpus(config, 259)
    num_bytes = sum(len(text.encode()) for text, _ in texts["val.jsonl.zst"])
    assert corpus.validation_bytes == num_bytes
    report = corpus.report()
    assert report[0] == "source prepared, vocabulary bytes of 259 ids"
    assert report[2].startswith(
        f"validation: 40 documents, {num_bytes:,} bytes, {num_bytes + 40:,} tokens in {corpus.validation.num_rows} rows"
    )


def test_the_manifest_knows_other_data_and_not_another_place(data, tmp_path):
    config, texts = data
    manifest = load_corpus(config, 259).manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    (tmp_path / "out").rename(tmp_path / "moved")
    assert load_corpus(dataclasses.replace(config, path=f"{tmp_path}/moved"), 259).manifest == manifest
    write_pile(tmp_path / "other", shards=3)
    other = load_corpus(make(tmp_path / "other", tmp_path / "out3"), 259).manifest
    names = [line.partition(":")[0] for line in differences(manifest, other)]
    assert {"train_documents", "train_bytes", "train_content_hash", "train_rows_hash"} <= set(names)
    # One letter, with all counts as before.
    shard = tmp_path / "in" / "train" / "01.jsonl.zst"
    shard.write_bytes(compress(lines(texts["train/01.jsonl.zst"]).replace(b"stack", b"stock", 1)))
    changed = load_corpus(make(tmp_path / "in", tmp_path / "changed"), 259).manifest
    assert [line.partition(":")[0] for line in differences(manifest, changed)] == [
        "train_content_hash",
        "train_rows_hash",
    ]


def test_documents_are_those_of_the_shards(data):
    config, texts = data
    wanted = [[*(3 + byte for byte in text.encode()), 2] for name in sorted(texts) if name.startswith("train/")
              for text, _ in texts[name]]  # fmt: skip
    found = list(documents(config, "train"))
    assert [document.ids.tolist() for document in found] == wanted
    assert [document.name for document in found[:2]] == ["train#1", "train#2"]
    for split, name in (("validation", "val.jsonl.zst"), ("test", "test.jsonl.zst")):
        found = [(document.text, document.subset) for document in documents(config, split)]
        assert sorted(found) == sorted(texts[name])
    with pytest.raises(UserError, match="unknown split 'tests'; did you mean 'test'"):
        documents(config, "tests")


def test_what_does_not_fit_is_refused(data, tmp_path):
    config = data[0]
    (tmp_path / "v.model").write_text("x")
    for change, message in (
        (dict(path=None), "data.path is not set, but data.source='prepared' reads a directory made by `stagjax data"),
        (dict(path=f"{tmp_path}/none"), f"data.path={tmp_path}/none does not exist; give a directory made by"),
        (dict(path=f"{tmp_path}/in"), f"data.path={tmp_path}/in holds no prepared data; give a directory"),
        (dict(row_length=64), "data.row_length=64, but the rows of data.path=.* have 32 ids; use that, or"),
        (dict(vocabulary=f"{tmp_path}/v.model"), "data.vocabulary='.*v.model' is not a SentencePiece model"),
    ):
        with pytest.raises(UserError, match=message):
            load_corpus(dataclasses.replace(config, **change), 259)
    with pytest.raises(UserError, match="data.vocabulary='prepared' is that of prepared data, but data.source='jsonl'"):
        dataclasses.replace(config, source="jsonl").check()
    assert load_corpus(dataclasses.replace(config, vocabulary="bytes"), 259).vocabulary.name == "bytes"
    tree = json.loads((tmp_path / "out" / "prepared.json").read_text())
    tree["settings"]["vocabulary_fingerprint"] = "other"
    (tmp_path / "out" / "prepared.json").write_text(json.dumps(tree))
    with pytest.raises(
        UserError, match="data.vocabulary='bytes' is not the vocabulary that made the rows of data.path"
    ):
        load_corpus(dataclasses.replace(config, vocabulary="bytes"), 259)
    for text, message in (
        ("{", "prepared.json is damaged"),
        ('{"format": 1, "receipts": [{}], "settings": {}}', "prepared.json is damaged"),
        ('{"format": 2}', "has format 2, and this version of stagjax reads 1"),
    ):
        (tmp_path / "out" / "prepared.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_corpus(config, 259)


def test_sizes_are_looked_at_at_the_start_and_hashes_when_asked(data, tmp_path):
    prepared = open_prepared(data[0].path)
    assert verify(prepared) == []
    path = tmp_path / "out" / "rows" / "train-00001.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify(open_prepared(data[0].path)) == ["rows/train-00001.array_record: not the bytes that were written"]
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"rows/train-00001.array_record has [\d,]+ bytes, not [\d,]+; put it back"):
        load_corpus(data[0], 259)
    path.unlink()
    with pytest.raises(UserError, match="rows/train-00001.array_record is missing; put it back"):
        load_corpus(data[0], 259)
    assert verify(prepared) == ["rows/train-00001.array_record: missing"]
