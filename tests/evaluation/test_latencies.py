"""Latencies belong to models of the measured shape, whatever they are called."""

import dataclasses
import json

import pytest

from stagjax.errors import UserError
from stagjax.evaluation.latencies import join, read_bench, without_latencies
from tests.variants import VARIANTS


def row(model, ms, *, decoding="parallel", batch=1, context=64, stack=2, name="any"):
    return {
        "name": name,
        "model": dataclasses.asdict(model),
        "decoding": decoding,
        "batch": batch,
        "context": context,
        "length": context,
        "mesh": {"data": 1, "stack": stack, "tensor": 1},
        "devices": stack,
        "measured": {"median_ms": ms, "quartiles_ms": [ms, ms]},
    }


def test_shapes_join_and_names_do_not():
    model, other = VARIANTS["shared"], VARIANTS["window_5"]
    longer = dataclasses.replace(model, max_length=4096)
    rows = [
        row(other, 1.0, name="shared"),
        row(model, 2.0, batch=4),
        row(model, 3.0, context=128),
        row(model, 4.0, stack=1),
        row(longer, 5.0),
        row(model, 6.0, decoding="recurrent"),
    ]
    results = [{"path": "file", "machine": {"device": "chip"}, "rows": rows, "prefill": rows[5:]}]
    found = join(model, "parallel", results)
    # The fewest rows, then the fewest slots, then the most devices.
    assert found["decode"]["ms"] == 5.0 and found["decode"]["device"] == "chip" and found["decode"]["source"] == "file"
    assert [one["ms"] for one in found["others"]] == [4.0, 3.0, 2.0] and found["prefill"] is None
    found = join(model, "recurrent", results)
    assert (found["decode"]["ms"], found["prefill"]["ms"]) == (6.0, 6.0)
    assert join(VARIANTS["baseline"], "parallel", results) == {"decode": None, "prefill": None, "others": []}


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"benchmark": "decode", "rows": []}))
    assert read_bench(tmp_path)["path"] == str(tmp_path / "results.json")
    (tmp_path / "train.json").write_text(json.dumps({"benchmark": "train"}))
    with pytest.raises(UserError, match="is no result of stagjax bench decode"):
        read_bench(tmp_path / "train.json")
    (tmp_path / "cut.json").write_text('{"benchmark": "dec')
    with pytest.raises(UserError, match="is damaged"):
        read_bench(tmp_path / "cut.json")


def test_results_that_gave_nothing_are_named(tmp_path):
    assert read_bench(tmp_path / "none") is None and read_bench(tmp_path) is None
    results = {"lat": {"path": "lat/results.json", "rows": [row(VARIANTS["shared"], 2.0)]}, "none": None}
    named = lambda name: without_latencies(results, [join(VARIANTS[name], "parallel", [results["lat"]])])
    missing = "no latencies of bench none: it is not there; make it by stagjax bench decode"
    assert [note.startswith(missing) and note.endswith("--output=none") for note in named("shared")] == [True]
    shape, absent = named("window_5")
    assert shape.startswith("no latencies of bench lat: no model here has a shape") and absent.startswith(missing)
