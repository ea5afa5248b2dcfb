"""`stagjax bench train` as its user meets it: a table, results, and one clear line for what is wrong."""

import json

import pytest

from stagjax.cli import main

FILE = "--config=experiments/stdlib.py"
SMALL = ["--steps=1", "--rounds=1", "--batch=8", "--config.data.row_length=16", "--config.model.layers_per_stack=1"]


@pytest.fixture(autouse=True)
def usual_memory(monkeypatch):
    """Leave alone how this process holds its memory: it would stay so for all later tests."""
    monkeypatch.setattr("stagjax.host_memory.keep_host_memory", lambda: None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([FILE], "--variants says what is measured, e.g. --variants=baseline_3; known: baseline_3, baseline_6, sep"),
        ([FILE, "--variants=runlocal"], "--variants says what is measured"),
        ([FILE, "--variants=baseline_3,separate_2x4"], "unknown variant in --variants 'separate_2x4'; did you mean"),
        ([FILE + ":baseline_3", "--variants=baseline_6"], "names a variant, and so does --variants; use " + FILE),
        ([FILE + ":baseline_9"], "baseline_9: unknown variant 'baseline_9'"),
        ([FILE + ":baseline_3", "--batch=0"], "--batch=0 is below 1"),
        ([FILE + ":baseline_3", "--steps=0"], "--steps=0 is below 1; use 1 or more"),
        ([FILE + ":baseline_3", "--rounds=-1"], "--rounds=-1 is below 1; use 1 or more"),
        ([FILE + ":baseline_3", "--local-processes=4096"], "--local-processes=4096 is outside 1.."),
        ([FILE + ":baseline_3", "--output={tmp}"], "holds the results of another run"),
        ([FILE + ":separate_3x2", "--config.mesh.stack=2"], "separate_3x2: mesh.stack=2 is neither 1 nor"),
        ([FILE + ":baseline_3", "--config.training.setps=2"], "did you mean 'training.steps'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    assert main(["bench", "train", *(word.format(tmp=tmp_path) for word in argv)]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("stagjax: ")
    assert message in printed
    assert "\n" not in printed


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "train", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for part in ("examples:", "--variants", "--pipelined", "runlocal", "--rounds"):
        assert part in printed


def test_variants_are_measured_side_by_side_and_pipelined(capsys, monkeypatch):
    from stagjax.bench.roofline import Peakmeter, Peaks
    from stagjax.cli.bench_results import Report

    # Measuring eight devices that share two cores would take longer than all the rest.
    monkeypatch.setattr(Peakmeter, "peaks", lambda *_, **__: Peaks(1e9, 1e9, None, "measured"))
    kept = []
    keep = Report.keep
    monkeypatch.setattr(Report, "keep", lambda *args, **kwargs: kept.append(keep(*args, **kwargs)) or kept[-1])
    # The tests' process has eight devices; a model of one stack keeps mesh.stack=1, the other has a slice a stack.
    argv = [FILE, "--variants=baseline_3,separate_2x3,runlocal", "--config.mesh.stack=2", *SMALL]
    assert main(["bench", "train", *argv]) == 0
    printed = capsys.readouterr().out
    assert "training steps, 8 rows of 16 tokens" in printed and "separate_2x3" in printed and "stack 2" in printed
    assert "note: measured on a CPU" in printed
    whole = json.loads(json.dumps(kept[-1], allow_nan=False))
    assert whole["benchmark"] == "train" and whole["complete"] and not kept[0]["complete"]
    assert [(row["name"], row["mesh"]["stack"]) for row in whole["rows"]] == [("baseline_3", 1), ("separate_2x3", 2)]
    assert [row["global_batch"] for row in whole["rows"]] == [8, 8]
    assert whole["settings"] == {"steps": 1, "rounds": 1}


def test_what_was_measured_so_far_is_kept(tmp_path):
    from stagjax.cli.bench_results import Report

    report = Report(tmp_path / "out", {"benchmark": "train", "notes": []})
    report.keep({"rows": [{"name": "a"}]})
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept == {"benchmark": "train", "notes": [], "complete": False, "rows": [{"name": "a"}]}


def test_pipelined_adds_a_row_for_models_of_several_stacks():
    from stagjax.cli import build_parser
    from stagjax.cli.bench_train import _variants

    args = build_parser("bench").parse_args(["bench", "train", FILE, "--variants=baseline_3,shared_3x3", "--pipelined"])
    args.overrides = []
    found = [(name, config.mesh.stack) for name, config in _variants(args)]
    assert found == [("baseline_3", 1), ("shared_3x3", 1), ("shared_3x3, pipelined", 3)]
