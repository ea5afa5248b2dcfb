"""Reports of a sweep from made-up results: missing is a dash, averages are over common tasks, pages are whole."""

import csv
import io
import json
import re

import pytest
import rich.console

from stagjax.reporting import evaluation_plots
from stagjax.reporting.evaluation_report import comma_separated, markdown, write_reports
from stagjax.reporting.evaluation_tables import (
    evaluation_grid,
    figure,
    footnotes,
    paper_grids,
    subset_grids,
    with_error,
)
from stagjax.reporting.grid import terminal_table


def source(documents, expected):
    partial = documents < expected
    return {
        "split": "test",
        "documents": documents,
        "expected": expected,
        "partial": partial,
        "summary": f"{documents:,} of {expected:,} documents",
    }


def cell(value, stderr=0.0123, metric="acc", truncated=0, expected=50, **metrics):
    found = {metric: {"value": value, "stderr": stderr}, **metrics}
    return {
        "status": "done",
        "key": "k",
        "reason": "",
        "metrics": found,
        "shots": 0,
        "documents": 40,
        "requests": 160,
        "truncated": truncated,
        "sources": [source(40, expected)],
        "scored_by": "teacher forcing",
        "timed_documents": 40,
        "seconds": 8.0,
    }


def missing(status="failed", reason="data/cb.jsonl is missing"):
    return {"status": status, "key": "", "reason": reason}


def row(name, step, cells, ms=None, decoding="parallel", average=0.5):
    decode = {
        "ms": ms,
        "batch": 1,
        "length": 64,
        "mesh": {"stack": 2, "tensor": 1},
        "device": "chip",
        "source": "lat/results.json",
    }
    return {
        "name": name,
        "path": f"runs/{name}",
        "step": step,
        "content": "c" * 64,
        "vocabulary": "v" * 64,
        "model": {"num_stacks": 2, "layers_per_stack": 3, "model_dim": 8},
        "parameters": 1_750_000_000,
        "validation_loss": None,
        "decoding": decoding,
        "scored_by": "teacher forcing",
        "shots": None,
        "cells": cells,
        "average": {"value": average, "stderr": 0.011},
        "pile_perplexity": {"value": 7.125, "stderr": 0.25},
        "latency": {"decode": decode if ms else None, "prefill": None, "others": []},
    }


def task(label, metric="acc", perfect=1.0, metrics=None):
    return {
        "label": label,
        "benchmark": label,
        "metric": metric,
        "higher_is_better": perfect is not None,
        "perfect": perfect,
        "metrics": metrics or [metric],
    }


@pytest.fixture
def results():
    subsets = {f"{name}/bits_per_byte": {"value": value, "stderr": 0.1} for name, value in (("A|B", 1.0), ("C", 2.0))}
    pile = cell(1.5, 0.05, "bits_per_byte", expected=40, **subsets)
    rows = [
        row("wide", 100, {"cb": cell(0.0), "copa": cell(0.625, truncated=3), "pile": pile}, ms=3.21, average=0.4),
        row("wide", 200, {"cb": cell(0.75), "copa": cell(0.5), "pile": pile}, ms=3.21),
        row("shared<b>", 200, {"cb": missing(), "copa": cell(None), "pile": pile}, decoding="recurrent"),
    ]
    tasks = [task("cb"), task("copa"), task("pile", "bits_per_byte", None)]
    machine = {"device": "Abacus", "date": "2030-01-02"}
    return {"tasks": tasks, "averaged": ["copa"], "rows": rows, "notes": ["a note"], "machine": machine}


def test_names_cannot_forge_lines_or_markup(results):
    results["rows"][0]["name"] = "wide[red]\n| forged |\x1b[2J\u202e $x$"
    pile = results["rows"][0]["cells"]["pile"]["metrics"]
    pile |= {f"{name}/bits_per_byte": {"value": 9.0, "stderr": 0.1} for name in ("", "x\n\x1b[1m", "[bold]:smile:")}
    out = io.StringIO()
    console = rich.console.Console(file=out, width=200)
    for grid in (*subset_grids(results)[:1], *paper_grids(results, 200)):
        console.print(terminal_table(grid, 200))
    for text in (out.getvalue(), markdown(results)):
        assert "\x1b" not in text and "\u202e" not in text and "\n| forged" not in text and "wide[red]" in text
    for name in ("(no subset)", "x\\n\\x1b[1m", "[bold]:smile:", "A|B"):
        assert name in out.getvalue()


def test_missing_figures_are_dashes_and_zero_is_a_figure(results):
    lines = [line.split(" | ") for line in markdown(results).splitlines()]
    head = [text.strip("| ") for text in lines[0]]
    first, _, last = (dict(zip(head, (text.strip("| ") for text in line), strict=True)) for line in lines[2:5])
    assert first["cb acc"] == "0.000 ± 0.012" and first["copa acc"] == "0.625 ± 0.012"
    assert last["cb acc"] == "-" and last["copa acc"] == "-" and last["decode ms"] == "-"
    assert first["decode ms"] == "3.21" and first["parameters"] == "1.75B" and "prefill ms" not in head
    found = list(csv.DictReader(io.StringIO(comma_separated(results))))
    assert found[0]["cb/acc"] == "0.0" and found[2]["cb/acc"] == "" and found[2]["decode_ms"] == ""
    assert found[1]["copa/acc_stderr"] == "0.0123"
    assert figure(None) == "-" and with_error({"value": 2.0, "stderr": None}) == "2.000"


def test_footnotes_say_what_is_partial_cut_off_and_missing(results):
    notes = footnotes(results)
    assert notes[0] == "a note" and notes[1] == "average: over the 1 tasks that every row has: copa"
    assert "shared<b> step 200 recurrent: not evaluated: cb (data/cb.jsonl is missing)" in notes
    assert "partial data: copa test 40 of 50" in notes
    assert "wide step 100, wide step 200: partial data: cb test 40 of 50" in notes
    assert "wide step 100: contexts cut off at the left: copa 3 of 160" in notes
    assert "wide step 100, wide step 200: decode ms: batch 1, 64 slots, stack 2, chip (lat/results.json)" in notes
    results["rows"][0]["cells"]["copa"]["own_examples"] = 7
    own = "documents with themselves, and so their answer, among their examples (as in the harness): copa 7 of 40"
    assert f"wide step 100: {own}" in footnotes(results)
    results["rows"][0]["vocabulary"] = "w"
    assert any("different vocabularies" in note for note in footnotes(results))


def test_tables_fit_the_terminal(results, capsys):
    import rich.console

    grids = [*paper_grids(results, 60), evaluation_grid(results), *subset_grids(results)]
    console = rich.console.Console(width=60)
    for grid in grids:
        console.print(terminal_table(grid, 60))
    out = capsys.readouterr().out
    assert all(len(line) <= 60 for line in out.splitlines())
    assert "wide step 100" in out and "0.625" in out and "A|B" in out
    wide = evaluation_grid(results)
    assert dict(zip((c.head for c in wide.columns), (c.cells[1] for c in wide.columns), strict=True)) | {} == {
        "task": "copa",
        "shots": "0",
        "metric": "acc",
        "value": "0.625",
        "error": "0.012",
        "documents": "40 of 50",
        "truncated": "3 of 160",
        "examples/s": "5.0",
        "scored by": "teacher forcing",
    }


def test_the_page_stands_by_itself(results, tmp_path):
    write_reports(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    assert "shared&lt;b&gt;" in page and "shared<b>" not in page
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "steps.png",
        "subsets.png",
        "tasks.png",
        "trade.png",
    ]
    assert page.count("data:image/png;base64,") == 4
    assert json.loads((tmp_path / "results.json").read_text()) == results
    # Without latencies, further checkpoints and The Pile there is nothing to draw of them.
    for one in results["rows"]:
        one["latency"], one["step"] = None, 5
        one["cells"].pop("pile")
    results["tasks"].pop()
    for picture in tmp_path.glob("*.png"):
        picture.unlink()
    write_reports(results, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["tasks.png"]


def test_a_task_that_no_row_has_is_not_drawn(results, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation_plots, "_lanes", lambda names, *_: drawn.append(names))
    evaluation_plots.draw_tasks(results, tmp_path / "tasks.png")
    label = next(task["label"] for task in results["tasks"] if task["perfect"])
    for one in results["rows"]:
        one["cells"][label] = missing()
    evaluation_plots.draw_tasks(results, tmp_path / "tasks.png")
    assert [name for name in drawn[0] if name not in drawn[1]] == [name for name in drawn[0] if name.startswith(label)]
    assert len(drawn[1]) == len(drawn[0]) - 1 > 0
