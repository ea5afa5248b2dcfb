"""From texts to spans: the split of context and continuation, truncation, and windows of documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagjax.data.vocabulary import BOS, EOS, ByteVocabulary, Vocabulary, train_sentencepiece
from stagjax.errors import UserError
from stagjax.evaluation.spans import DISJOINT, OVERLAP, SpanEncoder, document_spans


def encoder(max_length=64):
    return SpanEncoder(ByteVocabulary(), max_length)


def ids(text):
    return tuple(ByteVocabulary().encode(text).tolist())


def test_a_continuation_stands_after_bos_and_its_context():
    assert encoder().continuation("ab", " c") == ((BOS, *ids("ab")), ids(" c"), 0)
    assert encoder().continuation("", "abc") == ((BOS,), ids("abc"), 0)


def test_spaces_at_the_end_of_the_context_go_to_the_continuation():
    assert encoder().continuation("ab \n", "c") == ((BOS, *ids("ab")), ids(" \nc"), 0)
    assert encoder().continuation("  ", "c") == ((BOS,), ids("  c"), 0)


def test_both_are_encoded_as_one_text(tmp_path):
    vocabulary = train_sentencepiece(["the cat sat on the mat\n"] * 50, 280, tmp_path / "small.model")
    span = SpanEncoder(vocabulary, 64).continuation("the cat", " sat on the mat")
    whole = tuple(vocabulary.encode("the cat sat on the mat").tolist())
    assert span.context == (BOS, *vocabulary.encode("the cat").tolist())
    assert span.continuation == whole[len(span.context) - 1 :]
    assert vocabulary.decode(span.context + span.continuation) == "the cat sat on the mat"


class Merging(Vocabulary):
    """One id for every pair of letters, so that pieces join across the border."""

    def __init__(self):
        super().__init__("pairs", [b""] * 3 + [b"?"] * 300, "")

    def encode(self, text):
        import numpy as np

        return np.array([3 + len(text[n : n + 2]) for n in range(0, len(text), 2)], np.int32)


def test_a_continuation_that_joins_the_context_scores_the_joint_piece():
    assert SpanEncoder(Merging(), 64).continuation("abc", "d") == ((BOS, 5, 4), (5,), 0)


def test_long_contexts_lose_their_left_and_it_is_counted():
    span = encoder(8).continuation("abcdefgh", "xyz")
    # 8 inputs: the context's last six, and the continuation but for its last.
    assert span == (ids("cdefgh"), ids("xyz"), 3)
    assert encoder(11).continuation("abcdefgh", "xyz") == ((BOS, *ids("abcdefgh")), ids("xyz"), 0)
    assert encoder(3).continuation("abc", "xyz") == (ids("c"), ids("xyz"), 3)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match=r"the continuation after 'ab' is empty"):
        encoder().continuation("ab", "")
    with pytest.raises(UserError, match=r"continuation 'wxyz' has 4 tokens, over model.max_length=3; shorten it"):
        encoder(3).continuation("abc", "wxyz")
    with pytest.raises(UserError, match=r"'\\ud800' is not Unicode text"):
        encoder().continuation("\ud800", "a")
    with pytest.raises(
        UserError,
        match=r"max_new_tokens=64 leaves nothing of model.max_length=64 for .* --config.model.max_length=128 ",
    ):
        encoder().prompt("a", 64)


def test_prompts_leave_room():
    assert encoder(8).prompt("abcdef", 4) == (list(ids("cdef")), 3)
    assert encoder(8).prompt("ab", 4) == ([BOS, *ids("ab")], 0)


def test_documents_end():
    assert encoder().document("ab", True, DISJOINT) == [((BOS,), (*ids("ab"), EOS), 0)]
    assert encoder().document("ab", False, DISJOINT) == [((BOS,), ids("ab"), 0)]
    assert encoder().document("", True, DISJOINT) == [((BOS,), (EOS,), 0)]
    assert encoder().document("", False, DISJOINT) == []


def test_windows_as_the_harness_cuts_them():
    # What its get_rolling_token_windows and make_disjoint_window return for ids 10..19, prefix 1, 4 positions.
    assert [span[:2] for span in document_spans(tuple(range(10, 20)), 4, DISJOINT)] == [
        ((1,), (10, 11, 12, 13)),
        ((13,), (14, 15, 16, 17)),
        ((15, 16, 17), (18, 19)),
    ]
    assert [span[:2] for span in document_spans(tuple(range(10, 18)), 4, OVERLAP)] == [
        ((1,), (10, 11, 12, 13)),
        ((11, 12, 13), (14, 15)),
        ((13, 14, 15), (16, 17)),
    ]


@given(st.integers(0, 60), st.integers(1, 9), st.sampled_from([DISJOINT, OVERLAP]))
def test_every_token_is_scored_once_after_what_precedes_it(count, max_length, rule):
    document = tuple(range(100, 100 + count))
    spans = document_spans(document, max_length, rule)
    assert tuple(token for span in spans for token in span.continuation) == document
    inputs, end = (BOS, *document), 0
    for span in spans:
        taken = span.context + span.continuation[:-1]
        end += len(span.continuation)
        assert taken == inputs[end - len(taken) : end]
        assert len(taken) <= max_length
        if rule == OVERLAP and end > max_length:
            assert len(span.context) > max_length // 2 or len(span.context) == max_length
