"""What preparing shows: lines in a log, a bar on a terminal, and of a broken shard the first cases."""

import io

import rich.console

from stagjax.data.receipts import Part, Receipt, StoredFile
from stagjax.reporting.preparation import PreparationProgress


def receipt(faults):
    part = Part(3, 50, 53, 2, "hash", {"": 3}, StoredFile("rows", 1, "hash"), None)
    return Receipt("a.jsonl", 9, "hash", 3, 0, 9, 0, 0, 0, faults, {"train": part})


def show(terminal, faults=()):
    file = io.StringIO()
    console = rich.console.Console(file=file, force_terminal=terminal, width=100)
    with PreparationProgress("preparing", console) as progress:
        progress.begin(4, 2, 2_000_000, 1_000_000)
        progress.advance(500_000)
        progress.finished(receipt(dict(faults)))
    return file.getvalue()


def test_a_log_has_lines(monkeypatch):
    monkeypatch.setattr("stagjax.reporting.preparation._LINE_SECONDS", -1)
    assert show(False).splitlines() == [
        "2 of 4 shards are there already",
        "preparing: 2 of 2 MB (75%)",
        "a.jsonl: 3 documents, 53 tokens in 2 rows (3 of 4 shards)",
    ]


def test_a_terminal_has_a_bar_and_the_lines_above_it():
    shown = show(True)
    assert "1.5/2.0 MB" in shown and "(3 of 4 shards)" in shown and "preparing: " not in shown


def test_a_name_or_a_fault_cannot_forge_a_line(monkeypatch):
    case = {"where": "a\nb\x1b[2J:1", "detail": "[red]\u202e"}
    for terminal in (False, True):
        out = show(terminal, {"invalid JSON": {"count": 1, "first": [case]}})
        assert "  invalid JSON: a\\nb\\x1b[2J:1: [red]\\u202e\n" in out


def test_the_first_faults_of_a_shard_are_named():
    cases = [{"where": f"a.jsonl:{line}", "detail": "no"} for line in range(5)]
    lines = show(False, {"invalid JSON": {"count": 70, "first": cases}}).splitlines()
    assert lines[2:] == [*(f"  invalid JSON: a.jsonl:{line}: no" for line in range(3)), "  and 67 more"]
