"""The latency benchmark on forced CPU devices: every figure is there, and is what its name says."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from stagjax.bench.cases import Subject
from stagjax.bench.latency import LatencyBenchmark, Settings
from stagjax.bench.programs import decode_program
from stagjax.bench.roofline import MEASURED, PUBLISHED, Peakmeter, Peaks, roofline
from stagjax.bench.running import DecodeRun, Pool
from stagjax.decoding.placement import make_placement
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh
from stagjax.model.accounting import count_parameters, decode_flops
from tests.variants import tiny


@pytest.fixture(scope="module")
def result():
    subject = Subject("shared_2x2", tiny(shared_weights=True), DecodeMesh(stack=2, tensor=2))
    told = []
    benchmark = LatencyBenchmark(subject, Settings(repeats=3, warmup=1, tokens=2), lambda *step: told.append(step))
    benchmark.decode(2, 16, ("baseline", "baseline_slice", "recurrent"))
    benchmark.decode(4, 32, ("baseline_slice",))
    benchmark.split(2, 16, ("model", "baseline"))
    benchmark.prefill(2, 64)
    benchmark.prefill(1, 32)
    assert all(0 <= done < total for _, done, total in told)
    return benchmark.result


def test_a_row_a_case(result):
    shown = [(row["name"], row["role"], row["decoding"], row["batch"], row["context"]) for row in result["rows"]]
    assert shown == [
        ("shared_2x2", "model", "parallel", 2, 16),
        ("baseline_4", "baseline", "parallel", 2, 16),
        ("baseline_4", "baseline_slice", "parallel", 2, 16),
        ("shared_2x2", "recurrent", "recurrent", 2, 16),
        ("shared_2x2", "model", "parallel", 4, 32),
        ("baseline_4", "baseline_slice", "parallel", 4, 32),
    ]
    for row in result["rows"]:
        measured = row["measured"]
        low, high = measured["quartiles_ms"]
        assert 0 < low <= measured["median_ms"] <= high and measured["samples"] == 3
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / measured["median_ms"])
        assert row["ledgers"] == []  # nobody publishes what this CPU's links can do


def test_ratios_are_to_the_same_point(result):
    at = {(row["role"], row["context"]): row for row in result["rows"]}
    ms = lambda role, context: at[role, context]["measured"]["median_ms"]
    assert at["model", 16]["ratios"] == {
        "baseline": ms("model", 16) / ms("baseline", 16),
        "baseline_slice": ms("model", 16) / ms("baseline_slice", 16),
    }
    assert at["model", 32]["ratios"] == {"baseline_slice": ms("model", 32) / ms("baseline_slice", 32)}
    assert at["baseline", 16]["ratios"]["baseline"] == 1


def test_the_roofline_is_of_the_very_program(result):
    row = result["rows"][0]
    model = tiny(shared_weights=True)
    placement = make_placement(model, DecodeMesh(stack=2, tensor=2))
    roof, peaks = row["roofline"], row["roofline"]["peaks"]
    assert roof["read_bytes"] == decode_program(placement, 2, 16).read
    assert roof["flops"] == decode_flops(model, 16) * 2 / 4
    assert row["parameters"] == count_parameters(model).total
    assert peaks["source"] == MEASURED and peaks["working_set"] == 1 << 20
    floor = max(1e3 * roof["read_bytes"] / peaks["bandwidth"], 1e3 * roof["flops"] / peaks["flops"])
    assert roof["floor_ms"] == pytest.approx(floor)
    assert roof["share"] == pytest.approx(floor / row["measured"]["median_ms"])


def test_the_splits_add_up_by_their_own_account(result):
    model, baseline = result["splits"]
    assert (model["role"], baseline["role"]) == ("model", "baseline")
    for split in (model, baseline):
        total = sum(part["median_ms"] for part in split["parts"])
        assert split["sum_ms"] == pytest.approx(total)
        assert split["remainder_ms"] == pytest.approx(split["whole"]["median_ms"] - total)
        assert split["collectives"]["samples"] == 3
    assert "handoff" in {part["part"] for part in model["parts"]}
    assert "cross-attention" not in {part["part"] for part in baseline["parts"]}


def test_prefill_plain_and_pipelined(result):
    forms = [(row["name"], row["form"], row["devices"]) for row in result["prefill"]]
    assert forms == [
        ("shared_2x2", "plain", 4),
        ("shared_2x2", "pipelined over chunks", 4),
        ("baseline_4", "one slice", 4),
        ("baseline_4", "one slice", 2),
        # 32 tokens are one chunk.
        ("shared_2x2", "plain", 4),
        ("baseline_4", "one slice", 4),
        ("baseline_4", "one slice", 2),
    ]
    plain, pipelined = result["prefill"][:2]
    # Both compute the same, and the pipelined one reads its weights more often.
    assert plain["roofline"]["flops"] == pipelined["roofline"]["flops"]
    assert plain["roofline"]["read_bytes"] < pipelined["roofline"]["read_bytes"]


def test_what_is_timed_decodes_as_the_decoder_does():
    placement = make_placement(tiny(), DecodeMesh(stack=2))
    run = DecodeRun(placement, 2, 16, Pool())
    assert int(run.carry.state.slot) == 15  # the caches are full
    assert all(float(leaf.std()) > 0 for leaf in jax.tree.leaves(run.params.stacks) if leaf.ndim > 1)
    for count in (1, 3):
        before = int(run.carry.state.slot)
        assert run.call(count) > 0
        assert int(run.carry.state.slot) == before + count
    keys = run.carry.state.caches[0][0][0].keys_CSH
    written = np.unique(np.argwhere(np.abs(np.asarray(keys)[0]).max(-1) > 0.03)[:, 0])
    assert len(written) <= 4 and not jax.numpy.isnan(keys).any()


def test_programs_share_what_they_have_in_common():
    pool, placement = Pool(), make_placement(tiny())
    whole = DecodeRun(placement, 1, 8, pool).params
    without = DecodeRun(dataclasses.replace(placement, without=frozenset({"mlp"})), 1, 8, pool).params
    first, same = whole.stacks[0]["layers"][0], without.stacks[0]["layers"][0]
    assert "down" not in same and first["attention_in"] is same["attention_in"]
    layers = [layer["attention_in"] for stack in whole.stacks for layer in stack["layers"]]
    assert len({id(leaf) for leaf in layers}) == len(layers)


def test_published_peaks_and_what_bounds_a_program():
    class Chip:
        device_kind = "NVIDIA H100 80GB HBM3"

    class Mesh:
        devices = np.array([Chip()])

    peaks = Peakmeter("bfloat16").peaks(Mesh, 1 << 30)
    assert peaks == Peaks(989e12, 3350e9, None, PUBLISHED)
    floor = roofline(3350e6, 989e9, peaks)
    assert (floor.memory_ms, floor.compute_ms, floor.bound) == (pytest.approx(1), pytest.approx(1), "memory")
    assert roofline(1, 989e9, peaks).bound == "compute" and roofline(6700e6, 1, peaks).floor_ms == pytest.approx(2)


def test_the_bandwidth_is_measured_on_what_a_step_reads():
    meter = Peakmeter("float32")
    mesh = make_placement(tiny(), DecodeMesh(tensor=2)).mesh
    small, large = meter.peaks(mesh, 100), meter.peaks(mesh, 3 << 20)
    assert (small.working_set, large.working_set) == (1 << 20, 1 << 22)
    assert meter.peaks(mesh, 200) is small and small.flops == large.flops
    assert all(math.isfinite(value) and value > 1e6 for value in (small.bandwidth, large.bandwidth, small.flops))


def test_settings_out_of_range():
    with pytest.raises(UserError, match="--tokens=1 is outside 2..32"):
        Settings(tokens=1).check()
    with pytest.raises(UserError, match="--repeats=0"):
        Settings(repeats=0).check()
