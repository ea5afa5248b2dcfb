"""The planner: its figures hang together, what does not fit is told what would, and the best form keeps its lead."""

import dataclasses
import importlib.util
import io
import json
import re

import jax
import pytest
import rich.console

from stagjax.bench.anatomy import COMPONENTS
from stagjax.bench.compare import Comparison
from stagjax.bench.ledger import HOPS, PUBLISHED
from stagjax.bench.plan import Request, as_text, default_mesh, matched_baseline, plan
from stagjax.bench.topology import topology_devices
from stagjax.cli import main
from stagjax.cli.plan import _calibrations
from stagjax.decoding.placement import RECURRENT
from stagjax.errors import UserError
from stagjax.experiment import load_config
from stagjax.mesh import DecodeMesh
from stagjax.model.accounting import training_flops
from stagjax.reporting.tables import comparison_table, plan_tables

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")

V5E = "v5e:4x4"


@pytest.fixture(scope="module")
def devices():
    return topology_devices(V5E)


def request(variant, **options):
    overrides = options.pop("overrides", [])
    return Request(variant, load_config(f"experiments/pile.py:{variant}", overrides), **options)


@pytest.fixture(scope="module")
def comparison(devices):
    return Comparison(V5E, devices, (HOPS, PUBLISHED))


@pytest.mark.parametrize("batch", [1, 8])
def test_the_best_form_of_two_stacks_is_shorter_on_equal_chips_and_on_twice_the_chips(comparison, batch):
    row = comparison.row(request("separate_2x18_window_1", batch=batch))
    assert (row.plan.devices, row.equal.devices, row.slice.devices) == (16, 16, 8)
    assert row.plan.fits and row.equal.fits and row.slice.fits
    estimates = row.to_dict()["estimates"]
    assert len(estimates) == 4
    for name, estimate in estimates.items():
        assert estimate["ratio_one_slice"] < 0.65, name
        assert estimate["ratio_equal_chips"] < 0.9, name
    # The same form for both, and as many layers.
    assert row.equal.request.rows == row.plan.request.rows
    assert row.equal.request.config.model.layers_per_stack == 36


def test_figures_hang_together(comparison):
    row = comparison.row(request("separate_2x18_window_1", batch=8))
    figures = row.plan.to_dict()
    json.dumps(figures)
    assert {"fits", "bytes_per_device", "hbm_floor_ms", "compiler_ms", "collectives"} <= set(figures)
    assert {"kind", "axis", "count", "bytes"} <= set(figures["collectives"][0])
    assert figures["bytes_per_device"] == sum(size for name, size in row.plan.memory.items() if name != "total")
    # 2.9B parameters in bfloat16 over 16 chips and padding; 18 layers of two padded heads a chip, 8 rows, 1280 slots.
    assert 0.36e9 < row.plan.memory["parameters"] < 0.40e9
    assert row.plan.memory["self caches"] == 2 * 18 * 8 * 2 * 1280 * 128 * 2
    assert row.plan.memory["cross caches"] == 0
    read = row.plan.memory["parameters"] + row.plan.memory["self caches"] - 1280 * 1536 * 4
    assert row.plan.hbm_floor_ms == pytest.approx(1e3 * read / 819e9)
    assert row.plan.compiler_ms == pytest.approx(1e3 * row.plan.compiler_cycles / 1.5e9)
    assert sum(row.plan.components_ms.values()) == pytest.approx(row.plan.compiler_ms)
    assert set(row.plan.components_ms) <= {*COMPONENTS, "other"}
    assert row.plan.components_ms["other"] < 0.1 * row.plan.compiler_ms
    # The picture is the first ledger: what is hidden is not drawn.
    assert row.plan.timeline[-1].end == pytest.approx(row.plan.step_ms("compiler", "hops"), rel=0.02)
    handoff = row.plan.handoff
    assert handoff["count"] == 1 and handoff["hops"] == 2 and handoff["bytes"] == 8 * 1536 * 2
    assert not handoff["awaited_in_the_step"] and handoff["needs_the_step"]
    assert row.equal.handoff is None


def test_four_stacks_of_quarter_slices_and_idle_chips(devices, cache):
    tiny = ["model.layers_per_stack=2"]
    found = plan(request("separate_3x12", batch=8, overrides=tiny), V5E, devices)
    assert found.mesh == {"data": 1, "stack": 3, "tensor": 4}
    assert (found.devices, found.idle_devices) == (12, 4)
    assert found.handoff["hops"] == 2  # from one square of 2x2 chips to the next
    assert list(cache.iterdir()) == []


def test_the_default_mesh_and_the_matched_baseline():
    model = load_config("experiments/pile.py:shared_2x18").model
    assert default_mesh(model, "parallel", 16) == DecodeMesh(stack=2, tensor=8)
    assert default_mesh(model, RECURRENT, 16) == DecodeMesh(tensor=16)
    assert default_mesh(dataclasses.replace(model, num_stacks=3), "parallel", 16) == DecodeMesh(stack=3, tensor=4)
    deep = matched_baseline(request("separate_2x18_parallel_window_128", heads="repeated", rows=1), 8)
    assert deep.config.model == load_config("experiments/pile.py:baseline_36").model
    assert (deep.heads, deep.rows, deep.mesh) == ("repeated", 1, DecodeMesh(tensor=8))


def test_what_does_not_fit_is_told_what_would(devices):
    found = plan(request("baseline_36", batch=4096, mesh=DecodeMesh(tensor=4)), V5E, devices)
    assert not found.fits and found.memory["total"] > found.chip.memory
    assert any("--batch=" in line for line in found.advice) and any(
        "more than 4 chips" in line for line in found.advice
    )
    (line,) = (line for line in found.advice if "--batch=" in line)
    batch = int(line.partition("--batch=")[2].split()[0])
    assert 8 < batch < 4096
    assert plan(request("baseline_36", batch=batch // 2, mesh=DecodeMesh(tensor=4)), V5E, devices).fits


def test_prefill_hands_over_between_rounds(devices):
    found = plan(
        request("separate_2x18", batch=2, context=256, program="prefill", overrides=["model.layers_per_stack=2"]),
        V5E,
        devices,
    )
    # Two chunks of 256 rows each: three rounds.
    assert found.fits and found.handoff["count"] == 3 and found.handoff["awaited_in_the_step"]
    assert found.handoff["bytes"] == 2 * 128 * 1536 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"program": "decod"}, "'decod'.*decode"),
        ({"batch": 0}, "--batch=0 is below 1"),
        ({"context": 5000}, "--context=5000 is outside 1..1280, model.max_length"),
        ({"mesh": DecodeMesh(stack=2, tensor=16)}, "needs 32 devices, but there are 16"),
        ({"mesh": DecodeMesh(stack=2, tensor=3)}, "mesh.tensor=3 does not tile the 4x4x1 topology"),
        ({"mesh": DecodeMesh(data=2, stack=2, tensor=4), "batch": 3}, "a batch of 3 rows does not divide"),
    ],
)
def test_bad_requests_are_one_line(devices, options, message):
    with pytest.raises(UserError, match=message):
        plan(request("separate_2x18", **options), V5E, devices)


COMMAND = ["plan", "--config=experiments/pile.py:separate_2x18", "--config.model.layers_per_stack=2"]


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    written, picture = tmp_path / "plan.json", tmp_path / "step.png"
    changed = "--calibration=hops:hop_us=0.5"
    assert (
        main([*COMMAND, f"--topology={V5E}", "--batch=8", f"--json={written}", f"--timeline={picture}", changed]) == 0
    )
    out = capsys.readouterr().out
    assert "fits into 15.75 GiB" in out and "collective-permute" in out and "estimated (not measured)" in out
    figures = json.loads(written.read_text())
    assert figures["fits"] is True and figures["request"]["batch"] == 8
    hops = next(ledger for ledger in figures["ledgers"] if ledger["calibration"] == "hops")
    slice_sum = next(line for line in hops["lines"] if line["axis"] == "tensor")
    assert slice_sum["latency_us"] == pytest.approx(4 + 1e6 * 2 * 7 / 8 * slice_sum["bytes"] / 50e9)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_compares(tmp_path, capsys):
    command = ["plan", "--config=experiments/pile.py", "--config.model.layers_per_stack=1", "--compare"]
    command += [f"--topology={V5E}", "--variants=shared_2x18,separate_2x18_window_1", f"--output={tmp_path / 'plans'}"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "what each choice buys" in out and re.search(r"shared_2x18 +2x8 +16/8 +yes", out)
    figures = json.loads((tmp_path / "plans" / "plans.json").read_text())
    assert [row["name"] for row in figures["variants"]] == [
        "shared_2x18",
        "shared_2x18, recurrent",
        "separate_2x18_window_1",
    ]
    assert [row["choice"] for row in figures["choices"]][0].startswith("plain")
    assert (tmp_path / "plans" / "timeline_batch_1.png").exists()


def test_three_slices_stand_beside_a_baseline_that_uses_the_idle_chips_too(devices):
    row = Comparison(V5E, devices, (HOPS,)).row(request("separate_3x12", overrides=["model.layers_per_stack=1"]))
    figures = row.to_dict()
    assert (figures["devices"], figures["baseline_devices"]) == (12, [16, 4])
    shown = rich.console.Console(width=200, record=True, file=io.StringIO())
    shown.print(comparison_table([figures], V5E))
    assert re.search(r"separate_3x12 +3x4 +16/4 +yes", shown.export_text())


def test_chips_that_are_two_devices():
    """Ironwood: four chips are eight devices, of 94.74 GiB each, for which the constants of v5e say nothing."""
    devices = topology_devices("tpu7x:2x2x1")
    found = plan(request("separate_2x18", overrides=["model.layers_per_stack=1"]), "tpu7x:2x2x1", devices)
    figures = found.to_dict()
    assert (figures["devices"], figures["chips"], figures["mesh"]["tensor"]) == (8, 4, 4)
    assert {ledger["calibration"] for ledger in figures["ledgers"]} == {"hops"}
    assert figures["other_calibrations"] == {"published": "TPU v5 lite, TPU v5e"}
    shown = rich.console.Console(width=200, record=True, file=io.StringIO())
    shown.print(*plan_tables(figures))
    text = " ".join(shown.export_text().split())
    assert "on 4 chips (8 devices) of tpu7x:2x2x1" in text and "fits into 94.74 GiB" in text
    assert "'published' holds for TPU v5 lite, TPU v5e alone" in text


def test_a_program_that_jaxlib_cannot_read_is_one_line():
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: operands\nstack trace")

    with pytest.raises(UserError, match=r"jaxlib \S+ cannot read what libtpu \S+ has compiled \(INTERNAL: operands\)"):
        as_text(Compiled())


def test_constants_that_are_named_hold_for_any_chip():
    hops, published, own = _calibrations(["published:small_us=3", "own:hop_us=2"])
    assert (hops.kinds, published.kinds, own.kinds) == (None, None, None)
    assert published.small_us == 3 and _calibrations([])[1].kinds is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5x:4x4"], "'v5x'"),
        (["--topology=v5e:3x3"], "4x4"),
        ([f"--topology={V5E}", "--mesh=stak=2"], "'stak'.*stack"),
        ([f"--topology={V5E}", "--batch=many"], "--batch=many"),
        ([f"--topology={V5E}", "--batch=1,8"], "--compare"),
        ([f"--topology={V5E}", "--calibration=hops:hop=1"], "hop_us"),
        ([f"--topology={V5E}", "--decoding=recurrent"], "recurrent decoding needs a shared-weights model"),
        ([f"--topology={V5E}", "--decoding=recurent"], "'recurent'.*recurrent"),
    ],
)
def test_wrong_flags_are_one_line(capsys, arguments, message):
    assert main([*COMMAND, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main([*COMMAND, f"--topology={V5E}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'stagjax[tpu]'" in line


SMALL = ["model.layers_per_stack=1", "model.vocab_size=2560", "model.ff_dim=1536", "data.row_length=256"]
SMALL += ["training.loss_chunks=1", "training.global_batch=32"]


def test_the_command_compares_training_and_keeps_what_it_has_planned(tmp_path, capsys, monkeypatch):
    command = ["plan", "--config=experiments/pile.py", *(f"--config.{change}" for change in SMALL), "--compare"]
    command += ["--program=train", f"--topology={V5E}", f"--output={tmp_path}", "--variants=separate_2x18_window_1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "250,000 steps of 32 x 256 tokens" in " ".join(out.split()) and "chip-hours" in out
    monkeypatch.setattr("stagjax.bench.plan.plan", lambda *_: pytest.fail("compiled again"))
    assert main(command) == 0
    assert capsys.readouterr().out == out

    figures = json.loads((tmp_path / "training.json").read_text())["separate_2x18_window_1"]
    model, tokens = request("separate_2x18_window_1", overrides=SMALL).config.model, 32 * 256
    peak_ms = 1e3 * training_flops(model, 256) * tokens / (16 * 197e12)
    for ledger, cost in zip(figures["ledgers"], figures["training"], strict=True):
        assert cost["step_ms"] == ledger["step_ms"] and cost["mfu"] == pytest.approx(peak_ms / ledger["step_ms"])
        assert cost["days"] == pytest.approx(250_000 * ledger["step_ms"] / 86_400_000)
        assert cost["chip_hours"] == pytest.approx(cost["days"] * 24 * 16)
        assert cost["tokens_per_second"] == pytest.approx(tokens / ledger["step_ms"] * 1e3)
    floors = [ledger for ledger in figures["ledgers"] if ledger["compute"] == "flops"]
    assert [ledger["compute_ms"] for ledger in floors] == [pytest.approx(peak_ms)] * 2
    # Window 1 has no kernel of its own: two rows of twelve heads of two layers, each one block of 256, remat.
    cycles = (256**2 + 256**2) / 61
    assert figures["kernels_ms"] == pytest.approx(1e3 * 2 * 12 * 2 * cycles * (1 + 2 / 9) / 1.5e9)
    compiler = next(ledger for ledger in figures["ledgers"] if ledger["compute"] == "compiler")
    assert compiler["compute_ms"] == pytest.approx(figures["compiler_ms"] + figures["kernels_ms"])


def test_a_damaged_comparison_is_refused(tmp_path, capsys):
    (tmp_path / "training.json").write_text("{")
    command = ["plan", "--config=experiments/pile.py", "--compare", "--program=train", f"--topology={V5E}"]
    assert main([*command, f"--output={tmp_path}"]) == 2
    assert "training.json is damaged" in capsys.readouterr().err
