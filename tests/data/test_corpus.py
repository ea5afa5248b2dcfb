"""The corpus: both splits from one iterator, counted exactly, refused by name; and what it may import."""

import subprocess
import sys

import numpy as np
import pytest

from stagjax.config import DataConfig
from stagjax.data.corpus import documents, load_corpus
from stagjax.data.manifest import differences, rows_hash
from stagjax.data.packing import pack
from stagjax.data.sources import split_of
from stagjax.data.vocabulary import train_sentencepiece
from stagjax.errors import UserError

TEXTS = {f"{number}.txt": f"document {number}\n" * (number + 1) + "é" for number in range(60)}


@pytest.fixture
def folder(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return DataConfig(source="text", path=str(tmp_path), row_length=32, validation_percent=20)


def of(split):
    return [(name, TEXTS[name]) for name in sorted(TEXTS) if split_of(name, 20) == split]


def test_both_splits_hold_their_documents_and_no_other(folder):
    corpus = load_corpus(folder, 259)
    for split, rows in (("train", corpus.train), ("validation", corpus.validation)):
        ids = [[3 + byte for byte in text.encode()] + [2] for _, text in of(split)]
        wanted = pack(ids, 32)
        np.testing.assert_array_equal(rows.targets_RT, wanted.targets_RT)
        np.testing.assert_array_equal(rows.first_inputs_R, wanted.first_inputs_R)
        assert rows.num_documents == len(ids) > 5
    assert corpus.validation_bytes == sum(len(text.encode()) for _, text in of("validation"))


def test_documents_are_those_that_rows_are_packed_from(folder):
    corpus = load_corpus(folder, 259)
    for split, rows in (("train", corpus.train), ("validation", corpus.validation)):
        found = list(documents(folder, split))
        assert [(document.name, document.text) for document in found] == of(split)
        assert {document.ids.dtype for document in found} == {np.dtype(np.int32)}
        assert rows_hash(pack([document.ids for document in found], 32)) == rows_hash(rows)


def test_manifest_describes_the_corpus_and_is_reproducible(folder):
    corpus = load_corpus(folder, 259)
    manifest = corpus.manifest
    assert manifest == load_corpus(folder, 300).manifest
    assert (manifest.source, manifest.row_length, manifest.validation_percent) == ("text", 32, 20)
    assert manifest.train_documents + manifest.validation_documents == 60
    assert manifest.train_bytes + manifest.validation_bytes == sum(len(text.encode()) for text in TEXTS.values())
    assert manifest.train_rows_hash == rows_hash(corpus.train)
    assert manifest.validation_rows_hash == rows_hash(corpus.validation)


def test_manifest_shows_a_changed_document(folder, tmp_path):
    before = load_corpus(folder, 259).manifest
    name = of("train")[0][0]
    (tmp_path / name).write_text(TEXTS[name].replace("d", "D"))
    changed = differences(before, load_corpus(folder, 259).manifest)
    assert [line.split(":")[0] for line in changed] == ["train_content_hash", "train_rows_hash"]


def test_a_trained_vocabulary_serves(folder, tmp_path):
    path = tmp_path / "v.model"
    vocabulary = train_sentencepiece(TEXTS.values(), 290, path)
    config = DataConfig("text", folder.path, str(path), 32, 20)
    corpus = load_corpus(config, 290)
    assert corpus.vocabulary.fingerprint == corpus.manifest.vocabulary_fingerprint == vocabulary.fingerprint
    text = corpus.vocabulary.decode(corpus.train.targets_RT.reshape(-1))
    assert text == "".join(text for _, text in of("train"))


def test_report_counts_and_names_what_was_skipped(folder, tmp_path):
    for number in range(7):
        (tmp_path / f"bad{number}.md").write_bytes(b"\xff")
    corpus = load_corpus(folder, 259)
    train, validation = of("train"), of("validation")
    num_bytes = sum(len(text.encode()) for _, text in train)
    num_tokens = num_bytes + len(train)
    num_rows = -(-num_tokens // 32)
    report = corpus.report()
    assert report[0] == "source text, vocabulary bytes of 259 ids"
    assert report[1] == (
        f"train: {len(train)} documents, {num_bytes:,} bytes, {num_tokens:,} tokens in {num_rows} rows of 32 "
        f"({num_tokens / num_rows / 32:.1%} full)"
    )
    assert report[2].startswith(f"validation: {len(validation)} documents, ")
    assert report[3:] == [
        "skipped 7:",
        *(f"  bad{number}.md: not UTF-8 at byte 0" for number in range(5)),
        "  and 2 more",
    ]


def test_a_vocabulary_larger_than_the_model_is_refused(folder):
    with pytest.raises(UserError) as error:
        load_corpus(folder, 258)
    assert str(error.value) == (
        "model.vocab_size=258 is below the 259 ids of vocabulary 'bytes'; set model.vocab_size=259 or more"
    )


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("train", "data.validation_percent=20 leaves no document for validation of the {} of data.source='text', "
                  "data.path='{}'; raise it or add documents"),
        ("validation", "data.validation_percent=20 leaves no document for train of the {} of data.source='text', "
                       "data.path='{}'; lower it or add documents"),
    ],
)  # fmt: skip
def test_an_empty_split_is_refused(folder, tmp_path, kept, message):
    kept = dict(of(kept))
    for name in TEXTS.keys() - kept.keys():
        (tmp_path / name).unlink()
    with pytest.raises(UserError) as error:
        load_corpus(folder, 259)
    assert str(error.value) == "empty corpus: " + message.format(len(kept), tmp_path)


def test_a_corpus_that_cannot_be_read_is_refused(folder, tmp_path):
    for name in TEXTS:
        (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(UserError) as error:
        load_corpus(folder, 259)
    assert str(error.value) == (
        f"empty corpus: data.source='text', data.path='{tmp_path}' has no document that can be read (60 could not be "
        "read, the first: 0.txt: not UTF-8 at byte 0); correct the files or the path"
    )


def test_an_unknown_split_is_refused_at_once(folder):
    with pytest.raises(UserError, match="unknown split 'valid'; did you mean 'validation'"):
        documents(folder, "valid")


def test_the_data_package_imports_no_framework():
    # TensorFlow alone costs 7.8 s and 650 MB, in every process that trains or decodes.
    code = (
        "import importlib, pkgutil, sys, stagjax.data\n"
        "names = [module.name for module in pkgutil.walk_packages(stagjax.data.__path__, 'stagjax.data.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names), *sorted({'tensorflow', 'seqio', 'jax', 'flax', 'sentencepiece'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, *loaded = result.stdout.split()
    assert int(number) >= 6 and loaded == []
