"""Finished work: keys that see every change, results that are whole or absent, logs cut after a whole portion."""

import json
import os

import pytest

from stagjax.evaluation import cells as module
from stagjax.evaluation.cells import Cells, NotKept, cell_key

PARTS = {"content": "c", "vocabulary": "v", "questions": "q", "settings": {"decoding": "parallel"}}


def test_keys_see_every_change(monkeypatch):
    keys = {cell_key(**PARTS)}
    for part in ("content", "vocabulary", "questions"):
        keys.add(cell_key(**PARTS | {part: "other"}))
    keys.add(cell_key(**PARTS | {"settings": {"decoding": "recurrent"}}))
    monkeypatch.setattr(module, "SEMANTICS", module.SEMANTICS + 1)
    keys.add(cell_key(**PARTS))
    assert len(keys) == 6
    monkeypatch.undo()
    assert cell_key(**PARTS) == cell_key(**PARTS)


def test_a_result_is_there_only_if_it_is_whole(tmp_path):
    cells = Cells(tmp_path / "cells")
    assert cells.read("k") is None
    cells.finish("k", {"metrics": {"acc": {"value": 0.1, "stderr": None}}})
    assert cells.read("k") == {"key": "k", "metrics": {"acc": {"value": 0.1, "stderr": None}}}
    file = tmp_path / "cells" / "k.json"
    text = file.read_text()
    for damaged in (text.replace("0.1", "0.2"), text[:-9], "[]", "null", ""):
        file.write_text(damaged)
        assert cells.read("k") is None, damaged
    # Another cell's result under this name is not this cell's.
    file.write_text(text)
    file.rename(tmp_path / "cells" / "l.json")
    assert cells.read("l") is None


@pytest.mark.parametrize(
    ("kept", "torn", "found"),
    [(0, "", 0), (2, "", 2), (3, "", 2), (5, "", 5), (5, '{"index": 5, "sco', 5), (4, '{"index": 4}', 2)],
)
def test_a_log_goes_on_after_its_last_whole_portion(tmp_path, kept, torn, found):
    cells = Cells(tmp_path)
    lines = [{"index": n, "text": "é\u2028\n"} for n in range(6)]
    cells.log_path("k").write_text("".join(json.dumps(line) + "\n" for line in lines[:kept]) + torn)
    with cells.claim("k") as log:
        assert log.lines([2, 3, 1]) == lines[:found]
        log.append(lines[found:])
    with cells.claim("k") as log:
        assert log.lines([2, 3, 1]) == lines
    assert len(cells.log_path("k").read_text().splitlines()) == 6


def test_a_cell_is_claimed_once_and_free_again_afterwards(tmp_path):
    cells = Cells(tmp_path)
    with cells.claim("k") as log:
        assert log is not None
        with Cells(tmp_path).claim("k") as other:
            assert other is None
        with Cells(tmp_path).claim("l") as other:
            assert other is not None
    with cells.claim("k") as log:
        assert log is not None


def test_a_full_disk_ends_everything_in_one_line(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    cells = Cells(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with cells.claim("k") as log, pytest.raises(NotKept, match="No space left on device; what is finished is kept"):
        log.append([{"index": 0}])
    with pytest.raises(NotKept, match="No space left"):
        cells.finish("k", {})
    assert cells.read("k") is None
