"""The registry: tasks by name, and our vocabularies behind seqio's interface."""

import pytest

seqio = pytest.importorskip("seqio")

import tensorflow as tf  # noqa: E402

from stagjax.data.vocabulary import ByteVocabulary, train_sentencepiece  # noqa: E402
from stagjax.errors import UserError  # noqa: E402
from stagjax.tasks.registry import PRETRAINING, get_task  # noqa: E402
from stagjax.tasks.seqio_vocabulary import SeqioVocabulary  # noqa: E402

TEXT = "def f(x):\n    return  x\u2581 é\n\0"


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def vocabulary(request, tmp_path_factory):
    if request.param == "bytes":
        return ByteVocabulary()
    return train_sentencepiece([TEXT * 9], 285, tmp_path_factory.mktemp("vocabulary") / "v.model")


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_pretraining_task_exists_under_its_name(name):
    task = get_task(name)
    assert task.name == name
    assert set(task.splits) == {"train", "validation"}
    assert isinstance(task.output_features["targets"].vocabulary, SeqioVocabulary)


def test_unknown_tasks_are_refused_and_the_known_listed():
    with pytest.raises(UserError, match="unknown task 'stagjax_stdlb'; did you mean 'stagjax_stdlib'"):
        get_task("stagjax_stdlb")


def test_ids_are_ours_in_python_and_in_tensorflow(vocabulary):
    wrapped, ids = SeqioVocabulary(vocabulary), vocabulary.encode(TEXT).tolist()
    assert wrapped.encode(TEXT) == ids
    assert wrapped.encode_tf(tf.constant(TEXT)).numpy().tolist() == ids
    dataset = tf.data.Dataset.from_tensors(TEXT).map(wrapped.encode_tf)
    assert next(dataset.as_numpy_iterator()).tolist() == ids


def test_decoding_stops_at_eos_in_python_and_in_tensorflow(vocabulary):
    wrapped = SeqioVocabulary(vocabulary)
    ids = [1, *vocabulary.encode(TEXT).tolist(), 2, *vocabulary.encode("more").tolist()]
    assert wrapped.decode(ids) == TEXT
    assert wrapped.decode_tf(tf.constant(ids)).numpy().decode() == TEXT
    assert [text.decode() for text in wrapped.decode_tf(tf.constant([ids, ids])).numpy()] == [TEXT, TEXT]


def test_seqio_sees_our_specials_and_size(vocabulary):
    wrapped = SeqioVocabulary(vocabulary)
    assert (wrapped.pad_id, wrapped.bos_id, wrapped.eos_id, wrapped.unk_id) == (0, 1, 2, None)
    assert wrapped.vocab_size == vocabulary.size
    assert wrapped == SeqioVocabulary(vocabulary) and hash(wrapped) == hash(SeqioVocabulary(vocabulary))


def test_other_vocabularies_are_unequal(tmp_path):
    pieces = train_sentencepiece([TEXT * 9], 285, tmp_path / "v.model")
    assert SeqioVocabulary(pieces) != SeqioVocabulary(ByteVocabulary())
