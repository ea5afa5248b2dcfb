"""Packing: exact, without loss, and equal to a reference that goes token by token."""

import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagjax.data.packing import Rows, expand, pack

BOS, EOS = 1, 2
DOCUMENTS = st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=40), max_size=12)


def reference(documents, row_length):
    """Pack and expand one token at a time, straight from the convention: a list of rows of tuples."""
    rows, row = [], []
    for document in documents:
        previous, segment, position = BOS, (row[-1][3] + 1 if row else 1), 0
        for token in document:
            row.append((previous, token, position, segment, 1.0))
            previous, position = token, position + 1
            if len(row) == row_length:
                rows.append(row)
                row, segment, position = [], 1, 0
    if row:
        rows.append(row + [(0, 0, 0, 0, 0.0)] * (row_length - len(row)))
    return rows


def unpack(rows):
    """Return the documents of packed rows: a segment continues the last one unless its first input is BOS."""
    documents = []
    for targets, segments, first_input in zip(rows.targets_RT, rows.segment_ids_RT, rows.first_inputs_R, strict=True):
        for segment in range(1, segments.max() + 1):
            tokens = targets[segments == segment].tolist()
            if segment == 1 and first_input != BOS:
                assert documents[-1][-1] == first_input
                documents[-1] += tokens
            else:
                documents.append(tokens)
    return documents


@given(documents=DOCUMENTS, row_length=st.integers(1, 17))
@example(documents=[[5, 6, 7, 2]], row_length=4)
@example(documents=[[5, 6, 7, 2], [8, 2]], row_length=4)
@example(documents=[[3] * 40], row_length=3)
@example(documents=[], row_length=3)
def test_unpacking_gives_back_the_documents(documents, row_length):
    rows = pack([np.array(document, np.int32) for document in documents], row_length)
    num_tokens = sum(map(len, documents))
    assert unpack(rows) == documents
    assert rows.num_documents == len(documents)
    assert rows.num_tokens == num_tokens
    assert rows.num_rows == -(-num_tokens // row_length)
    assert (rows.segment_ids_RT[:-1] > 0).all()  # only the last row has padding
    assert rows.fill == (num_tokens / rows.targets_RT.size if documents else 0)


@given(documents=DOCUMENTS, row_length=st.integers(1, 17))
@example(documents=[[5, 6, 7, 2], [8, 2]], row_length=3)
def test_expand_equals_the_reference(documents, row_length):
    rows = pack(documents, row_length)
    assert {rows.targets_RT.dtype, rows.segment_ids_RT.dtype, rows.first_inputs_R.dtype} == {np.dtype(np.int32)}
    batch = expand(rows)
    wanted = np.array(reference(documents, row_length)).reshape(rows.num_rows, row_length, 5)
    for column, name in enumerate(("inputs", "targets", "positions", "segment_ids", "loss_weights")):
        assert batch[name].dtype == (np.float32 if name == "loss_weights" else np.int32), name
        np.testing.assert_array_equal(batch[name], wanted[:, :, column], err_msg=name)


@given(documents=DOCUMENTS.filter(len), row_length=st.integers(1, 17), data=st.data())
def test_a_selection_expands_like_the_whole(documents, row_length, data):
    rows = pack(documents, row_length)
    index = np.array(data.draw(st.lists(st.integers(0, rows.num_rows - 1), min_size=1)))
    whole, part = expand(rows), expand(rows.select(index))
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][index])


def test_a_cut_document_goes_on_after_its_true_previous_token():
    rows = pack([[5, 6, 2], [7, 8, 9, 2]], 4)
    batch = expand(rows)
    assert rows.first_inputs_R.tolist() == [BOS, 7]
    assert batch["inputs"].tolist() == [[BOS, 5, 6, BOS], [7, 8, 9, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2], [1, 1, 1, 0]]


def test_padded_to_adds_rows_of_padding():
    rows = pack([[5, 6, 2]], 2).padded_to(4)
    batch = expand(rows)
    assert rows.num_rows == 4 and rows.num_documents == 1 and rows.num_tokens == 3
    assert not any(batch[name][2:].any() for name in batch)


@pytest.mark.parametrize("document", [[], [5, 0, 2], [5, 1, 2], [-1, 2]])
def test_documents_that_could_not_be_told_apart_are_refused(document):
    with pytest.raises(ValueError, match="at least its EOS, and neither pad nor BOS"):
        pack([np.array([5, 2]), np.array(document, np.int32)], 4)


def test_twelve_megabytes_pack_in_a_moment():
    # 0.05 s on one core; a loop over tokens takes over 2 s.
    documents = list(np.random.default_rng(0).integers(3, 259, (800, 15_000), np.int32))
    start = time.process_time()
    rows = pack(documents, 256)
    assert time.process_time() - start < 1.5
    assert isinstance(rows, Rows) and rows.num_tokens == 12_000_000
