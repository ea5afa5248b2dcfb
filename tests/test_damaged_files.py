"""What a command wrote and another one reads: damaged in any way it is one line that names the file."""

import json

import pytest

from stagjax.cli.evaluate import _refuse_other
from stagjax.cli.plan import _planned
from stagjax.data.preparing import Settings, prepare
from stagjax.errors import UserError
from stagjax.evaluation.cells import Cells
from stagjax.evaluation.latencies import read_bench
from stagjax.files import read_json

DAMAGED = {
    "empty": b"",
    "cut": b'{"rows": [{"con',
    "a list": b"[]",
    "a text": b'"rows"',
    "other types": b'{"rows": 7, "benchmark": "decode"}',
    "other types within": b'{"rows": [7], "benchmark": "decode"}',
    "not UTF-8": b'{"\xff": 1}',
    "nested": b"[" * 100_000,
    "a directory": None,
}


class Subject:
    content = "00"


READERS = {
    "results.json": lambda folder: _refuse_other(folder, Subject, "parallel"),
    "training.json": lambda folder: _planned(folder / "training.json"),
    "bench.json": lambda folder: read_bench(folder / "bench.json"),
    "plan.json": lambda folder: prepare([], Settings("bytes", 32, 50), folder, None),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_one_line_that_names_the_file(tmp_path, name, damage):
    content, file = DAMAGED[damage], tmp_path / name
    if content is None:
        (file / "results.json").mkdir(parents=True)
    else:
        file.write_bytes(content)
    if name == "plan.json" and damage.startswith("other types"):
        match = "made from other sources or settings: "
    else:
        match = f"{name}(/results.json)? (is damaged|cannot be read|is no result|holds)"
    with pytest.raises(UserError, match=match) as raised:
        READERS[name](tmp_path)
    assert str(raised.value).isprintable() and "; " in str(raised.value)


def test_a_file_that_is_not_there_is_pythons_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", "make one")
    (tmp_path / "whole").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "whole", "make one") == {"a": 1}


def test_a_log_that_is_damaged_counts_up_to_there(tmp_path):
    cells = Cells(tmp_path)
    for line in ("[]", "7", "[" * 100_000, '{"a"'):
        cells.log_path("k").write_text('{"a": 1}\n' + line + '\n{"a": 3}\n')
        with cells.claim("k") as log:
            assert log.lines([1, 1, 1]) == [{"a": 1}]


def test_prepared_data_are_kept_under_text_only(tmp_path):
    with pytest.raises(UserError, match="has bytes that are not UTF-8; give another directory"):
        prepare([], Settings("bytes", 32, 50), tmp_path / "\udcff", None)
    assert list(tmp_path.iterdir()) == []
