"""Rows on disk: the rows that were written, in any order; a damaged record is named."""

import pathlib

import numpy as np
import pytest

from stagjax.data.packing import concatenate, pack
from stagjax.data.row_files import RowFile, RowWriter, StoredRows
from stagjax.errors import RunFailed

T = 16


def part(seed, num_documents, subset=None):
    random = np.random.default_rng(seed)
    return pack(
        [np.append(random.integers(3, 300_000, random.integers(1, 40)), 2) for _ in range(num_documents)], T, subset
    )


def write(path, rows, subsets=()):
    writer = RowWriter(path)
    for start in range(0, rows.num_rows, 5):
        writer.write(rows.select(slice(start, start + 5)))
    writer.close()
    return RowFile(path, rows.num_rows, rows.num_tokens, rows.num_documents, subsets)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three files, the second without a row, and what they hold."""
    root = tmp_path_factory.mktemp("rows")
    parts = [part(0, 30), part(1, 0), part(2, 50)]
    return StoredRows([write(root / str(n), rows) for n, rows in enumerate(parts)], T, False), concatenate(parts)


def assert_equal(found, wanted):
    for name in ("targets_RT", "segment_ids_RT", "first_inputs_R", "subsets_R"):
        array, expected = getattr(found, name), getattr(wanted, name)
        assert (array is None) == (expected is None), name
        if array is not None:
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_rows_come_back_in_any_order(stored):
    stored, wanted = stored
    assert (stored.num_rows, stored.num_tokens, stored.num_documents) == (wanted.num_rows, wanted.num_tokens, 80)
    assert stored.fill == wanted.fill
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(wanted.num_rows), 2))
    for chosen in (index, index[:0], index[:1], slice(3, 40, 2), slice(None)):
        assert_equal(stored.select(chosen), wanted.select(chosen))
    assert_equal(concatenate(list(stored.blocks())), wanted)


def test_rows_that_are_not_there_are_refused(stored):
    for index in (-1, stored[1].num_rows):
        with pytest.raises(IndexError, match="are not among"):
            stored[0].select(np.array([index]))


def test_few_files_are_open_at_a_time(stored, monkeypatch):
    monkeypatch.setattr("stagjax.data.row_files._MOST_OPEN", 1)
    rows = StoredRows(stored[0]._files, T, False)
    assert_equal(rows.select(slice(None)), stored[1])
    assert len(rows._readers) == 1


def test_subsets_of_files_are_those_of_the_corpus(tmp_path):
    # The same index means another subset in another file.
    first, second = concatenate([part(0, 9, 0), part(1, 9, 1)]), concatenate([part(2, 9, 1), part(3, 9, 0)])
    rows = StoredRows([write(tmp_path / "a", first, (5, 7)), write(tmp_path / "b", second, (7, 6))], T, True)
    wanted = [*(5 + 2 * first.subsets_R), *(7 - second.subsets_R)]
    assert rows.select(slice(None)).subsets_R.tolist() == wanted


def test_a_damaged_record_is_named(tmp_path):
    rows = part(0, 60)
    file = write(tmp_path / "rows", rows)
    data = file.path.read_bytes()
    for place in (200, 2000):
        file.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        damaged = StoredRows([file], T, False)
        with pytest.raises(RunFailed) as error:
            damaged.select(slice(None))
        number = int(str(error.value).partition(": record ")[2].split()[0])
        assert str(error.value).startswith(f"{file.path}: record {number} is damaged (")
        intact = np.delete(np.arange(rows.num_rows), number)
        assert_equal(damaged.select(intact), rows.select(intact))


def test_a_file_that_is_cut_off_or_gone_or_has_other_rows_is_named(tmp_path):
    file = write(tmp_path / "rows", part(0, 60))
    for fault, change in (
        (f"holds 0 rows that can be read, not {file.num_rows}", lambda data: data[:-1]),
        ("is gone", None),
    ):
        file.path.write_bytes(change(file.path.read_bytes())) if change else file.path.unlink()
        with pytest.raises(RunFailed, match=fault):
            StoredRows([file], T, False).select(np.array([0]))
    file = write(pathlib.Path(tmp_path / "rows"), part(0, 60))
    with pytest.raises(RunFailed, match=f"record 3 has {4 * (2 * T + 2)} bytes, not {4 * (2 * T + 4)}"):
        StoredRows([file], T + 1, False).select(np.array([3]))
