"""Vocabularies: nothing is lost, ids are fixed, and files that are not ours are refused."""

import io
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from stagjax.data import vocabulary as vocabulary_module
from stagjax.data.vocabulary import ByteVocabulary, SentencePieceVocabulary, load_vocabulary, train_sentencepiece
from stagjax.errors import UserError

CODE = (
    'def f(x):\n    """Return x + 1.  Caf\u00e9 \u4e2d\u6587"""\n\tif x:\r\n        return  x + 1\n\n\n'
    "    for <s> in <0x0A>:\n\t\tpass  # \u2585 \u2047\n"
)
# What SentencePiece itself treats specially, mixed with what it does not.
ODD = st.text(
    st.sampled_from(list("ab \t\n\r\0\u2581\u2585\u2047\ufffd\ufeff\u2028\u00a0\u00e9e\u0301\ufb01\U0001f600<s>/0xA"))
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "code.model"
    return train_sentencepiece([CODE.replace("x", name) * 5 for name in ("x", "yy", "zed", "total")], 380, path), path


@pytest.fixture(scope="session")
def vocabularies(trained):
    uncut = SentencePieceVocabulary(trained[1])
    uncut._cut = False
    return {"bytes": ByteVocabulary(), "pieces": trained[0], "uncut": uncut}


def train_other(path, **options):
    """Write a model like ours but for `options`."""
    writer = io.BytesIO()
    settings = dict(
        sentence_iterator=iter(["a b  c\n d e f ab abc "] * 9), model_writer=writer, model_type="bpe", vocab_size=272,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, byte_fallback=True, add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(**(settings | options))
    path.write_bytes(writer.getvalue())
    return path


@pytest.mark.parametrize("kind", ["bytes", "pieces", "uncut"])
@given(text=st.text() | ODD)
@example(text="")
@example(text=CODE)
@example(text="\u2581 \u2581\u2581a\u2581\n")
@example(text=" a  b   \n\n \t\r\n\r ")
@example(text="<s></s><unk><pad><0x0A>\u0000<0x00>")
@example(text="e\u0301 \ufb01 \u2460 \uff21 \u1e9b\u0323")
def test_every_text_is_reproduced(vocabularies, kind, text):
    vocabulary = vocabularies[kind]
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert vocabulary.decode(ids) == text
    assert not np.isin(ids, [0, 1, 2, 3] if kind != "bytes" else [0, 1, 2]).any()
    assert vocabulary.byte_lengths[ids].sum() == len(text.encode())
    assert b"".join(vocabulary.pieces[index] for index in ids) == text.encode()


@given(lines=st.lists(ODD | st.sampled_from(["    return x\n", "\n", "def f(x):\n"]), max_size=30))
def test_cutting_at_newlines_changes_no_id(vocabularies, lines):
    # The limit is lowered so that short texts are cut as well.
    vocabulary, text = vocabularies["pieces"], "\n".join(lines)
    assert vocabulary._cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_module, "_CHUNK", 1)
        cut = vocabulary.encode(text)
    np.testing.assert_array_equal(cut, vocabularies["uncut"].encode(text))


def test_pieces_end_in_newlines_but_never_go_past_one(trained):
    pieces = trained[0].pieces
    assert any(piece.endswith(b"\n") and len(piece) > 1 for piece in pieces)
    assert not any(b"\n" in piece[:-1] for piece in pieces)
    assert b"    " in pieces  # indentation is one piece


def test_a_model_with_pieces_across_newlines_is_not_cut(tmp_path):
    path = train_other(tmp_path / "other.model", user_defined_symbols="b\nb", vocab_size=273)
    vocabulary = SentencePieceVocabulary(path)
    assert not vocabulary._cut
    ids = vocabulary.encode("ab\nba")
    assert vocabulary.decode(ids) == "ab\nba"
    assert b"b\nb" in [vocabulary.pieces[index] for index in ids]


def test_unigram_models_are_not_cut(tmp_path):
    path = train_other(tmp_path / "other.model", model_type="unigram", vocab_size=268)
    assert not SentencePieceVocabulary(path)._cut


def test_byte_ids_are_fixed():
    vocabulary = load_vocabulary("bytes")
    assert vocabulary.size == 259 and vocabulary.name == "bytes"
    assert vocabulary.encode("Aé").tolist() == [3 + 0x41, 3 + 0xC3, 3 + 0xA9]
    assert vocabulary.pieces[:4] == [b"", b"", b"", b"\0"] and vocabulary.pieces[258] == b"\xff"
    assert vocabulary.byte_lengths.dtype == np.int32
    assert vocabulary.fingerprint == ByteVocabulary().fingerprint and re.fullmatch(
        "[0-9a-f]{64}", vocabulary.fingerprint
    )


def test_specials_vanish_and_broken_utf8_shows():
    vocabulary = ByteVocabulary()
    assert vocabulary.decode([1, 3 + 0x61, 0, 3 + 0x62, 2]) == "ab"
    assert vocabulary.decode([3 + 0xC3, 3 + 0x61]) == "\ufffda"
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 259])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    with pytest.raises(ValueError, match="those of vocabulary 'bytes' from 0 to 258"):
        ByteVocabulary().decode([5, wrong])


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_lone_surrogates_are_a_value_error(vocabularies, kind):
    with pytest.raises(ValueError, match="surrogates"):
        vocabularies[kind].encode("a\ud800")


def test_training_is_reproducible(trained, tmp_path):
    again = train_sentencepiece(
        [CODE.replace("x", name) * 5 for name in ("x", "yy", "zed", "total")], 380, tmp_path / "deep" / "again.model"
    )
    assert again.fingerprint == trained[0].fingerprint and again.pieces == trained[0].pieces
    assert again.name == "again.model" and again.size == 380
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["again.model"]


def test_no_text_is_lost_to_the_trainer(tmp_path):
    # Each of these would be dropped: too long a line, too long a word, the trainer's own marker, a tab beside it.
    texts = ["needle hay " * 3000, "straw" * 14000, "\u2585thread\u2585" * 500, "\0cotton\0\tlinen" * 500]
    pieces = train_sentencepiece(texts, 310, tmp_path / "all.model").pieces
    for word in (b"needle", b"straw", b"thread", b"cotton", b"linen"):
        assert any(word in piece for piece in pieces), word


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "a.model").write_text("precious")
    with pytest.raises(UserError, match="a.model exists and is never overwritten; remove it or choose another name"):
        train_sentencepiece([CODE], 300, tmp_path / "a.model")
    assert (tmp_path / "a.model").read_text() == "precious"


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([CODE], 9999, r"--size=9999 is more than this text yields; use \d+ or less, or more text"),
        ([CODE], 262, r"--size=262 is below the specials, bytes and characters of this text; use \d+ or more"),
        ([CODE], 0, r"--size=0 is below the 4 specials and 256 bytes; use 512 or more"),
        ([], 300, "there is no text to train a vocabulary on"),
    ],
)
def test_sizes_that_the_text_does_not_yield(tmp_path, texts, size, message):
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, size, tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("too_far", [True, False])
def test_the_size_that_an_error_proposes_works(tmp_path, too_far):
    with pytest.raises(UserError) as error:
        train_sentencepiece([CODE], 9999 if too_far else 261, tmp_path / "a.model")
    proposed = int(re.search(r"use (\d+) or", str(error.value))[1])
    assert train_sentencepiece([CODE], proposed, tmp_path / "a.model").size == proposed


def test_an_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a.model cannot be written"):
        train_sentencepiece([CODE], 300, tmp_path / "file" / "a.model")


def test_an_error_of_the_source_comes_through(tmp_path):
    def texts():
        yield CODE
        raise UserError("the source broke")

    with pytest.raises(UserError, match="^the source broke$"):
        train_sentencepiece(texts(), 300, tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


REMEDY = "; use 'bytes' or a model made by `stagjax data vocab`$"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (dict(pad_id=-1, unk_id=0), r"numbers pad, BOS and EOS \(-1, 1, 2\), not \(0, 1, 2\)"),
        (dict(bos_id=2, eos_id=1), r"numbers pad, BOS and EOS \(0, 2, 1\), not \(0, 1, 2\)"),
        (dict(byte_fallback=False, vocab_size=16), "loses text: it has no byte fallback"),
        (dict(add_dummy_prefix=True), "loses text: it adds a dummy prefix"),
        (dict(remove_extra_whitespaces=True), "loses text: it removes extra whitespace"),
        (dict(normalization_rule_name="nmt_nfkc"), "loses text: its normalizer is not the identity"),
        (dict(sentence_iterator=iter(["abcabc"] * 9), vocab_size=265), "loses text: it has no piece for a space"),
    ],
)
def test_models_that_are_not_ours_are_refused(tmp_path, options, fault):
    path = train_other(tmp_path / "other.model", **options)
    with pytest.raises(UserError, match=r"^data\.vocabulary='.*other\.model' " + fault + REMEDY):
        load_vocabulary(str(path))


def test_a_model_like_ours_is_accepted(tmp_path):
    assert load_vocabulary(str(train_other(tmp_path / "other.model"))).size == 272


def test_files_that_are_no_models_are_refused(tmp_path, trained):
    absent, folder, text, short, empty = (tmp_path / name for name in ("absent", "folder", "text", "short", "empty"))
    folder.mkdir()
    text.write_text("not a model at all\n" * 100)
    short.write_bytes(trained[1].read_bytes()[:2000])
    empty.touch()
    for path, fault in [
        (absent, r"cannot be read \(No such file or directory\)"),
        (folder, r"cannot be read \(Is a directory\)"),
        (text, "is not a SentencePiece model"),
        (short, "is not a SentencePiece model"),
        (empty, "is not a SentencePiece model"),
    ]:
        with pytest.raises(UserError, match=rf"^data\.vocabulary='{path}' {fault}" + REMEDY):
            load_vocabulary(str(path))
