"""The training benchmark: what its rows say, held to the formulas of the spec and to the step that trains."""

import json
import math

import jax
import numpy as np
import pytest

from stagjax import memory
from stagjax.bench.roofline import Peakmeter, Peaks
from stagjax.bench.training import Settings, TrainingBenchmark, TrainingRun
from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.errors import RunFailed, UserError
from stagjax.mesh import training_mesh
from stagjax.model.accounting import count_parameters, training_flops
from tests.variants import tiny

ROWS, LENGTH, STEPS, ROUNDS = 8, 12, 3, 2
KEYS = {
    *("name", "model", "mesh", "devices", "parameters", "global_batch", "row_length", "accumulation"),
    *("compute_dtype", "remat", "attention", "microbatches", "bubble", "compile_seconds", "measured", "rounds_ms"),
    *("tokens_per_second", "flops_per_token", "mfu", "peaks", "memory", "ratio", "flops_ratio"),
}


def config_of(model, mesh=None, **changes):
    changes = {"global_batch": ROWS, "steps": 9, "warmup_steps": 1} | changes
    return Config(model, DataConfig(row_length=LENGTH), TrainingConfig(**changes), mesh or MeshConfig())


VARIANTS = [
    ("baseline", config_of(tiny(vocab_size=64, num_stacks=1))),
    ("pipelined", config_of(tiny(vocab_size=64), MeshConfig(stack=2), remat="layer", accumulation=2)),
]


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(told):
    """Two variants on two of the eight devices."""
    benchmark = TrainingBenchmark(VARIANTS, Settings(STEPS, ROUNDS), lambda *step: told.append(step), jax.devices()[:2])
    assert benchmark.result == {"rows": []}
    benchmark.measure_round()
    assert [row["measured"]["samples"] for row in benchmark.result["rows"]] == [STEPS] * 2
    benchmark.measure_round()
    return json.loads(json.dumps(benchmark.result, allow_nan=False))


@pytest.fixture(scope="module")
def rows(result):
    return {row["name"]: row for row in result["rows"]}


def test_rows_say_what_was_measured_and_how(result, rows):
    assert list(rows) == ["baseline", "pipelined"]
    for (name, config), row in zip(VARIANTS, result["rows"], strict=True):
        assert set(row) == KEYS, name
        assert row["parameters"] == count_parameters(config.model).total
        assert row["devices"] == 2 and math.prod(row["mesh"].values()) == 2
        assert (row["global_batch"], row["row_length"], row["attention"]) == (ROWS, LENGTH, "xla")
        assert row["measured"]["samples"] == STEPS * ROUNDS
        assert len(row["rounds_ms"]) == ROUNDS and min(row["rounds_ms"]) > 0
        low, high = row["measured"]["extremes_ms"]
        assert all(low <= median <= high for median in row["rounds_ms"])
        assert row["compile_seconds"] > 0
    assert [row["remat"] for row in result["rows"]] == ["none", "layer"]
    assert [row["accumulation"] for row in result["rows"]] == [1, 2]
    assert [row["mesh"]["fsdp"] for row in result["rows"]] == [2, 1]


def test_speed_and_mfu_follow_from_the_row(result):
    first = result["rows"][0]
    for (_, config), row in zip(VARIANTS, result["rows"], strict=True):
        assert row["flops_per_token"] == training_flops(config.model, LENGTH)
        seconds = row["measured"]["median_ms"] / 1e3
        assert row["tokens_per_second"] == pytest.approx(96 / seconds)  # 8 rows of 12 tokens
        assert row["peaks"]["source"] == "measured"
        flops = 96 * row["flops_per_token"]
        assert row["mfu"] == pytest.approx(flops / seconds / (2 * row["peaks"]["flops"]))
        assert row["ratio"] == pytest.approx(first["measured"]["median_ms"] / row["measured"]["median_ms"])
        assert row["flops_ratio"] == row["flops_per_token"] / first["flops_per_token"]
    assert first["ratio"] == first["flops_ratio"] == 1
    assert result["rows"][1]["flops_ratio"] > 1.5


def test_a_published_peak_is_that_of_every_device(monkeypatch):
    from stagjax.bench import roofline
    from stagjax.hardware import Chip

    chip = Chip("two devices", flops=4e12, hbm_bandwidth=1e9, memory=1e9, devices=2)
    monkeypatch.setattr(roofline, "chip_of", lambda device: chip)
    benchmark = TrainingBenchmark(VARIANTS[:1], Settings(1, 1), lambda *_: None, jax.devices()[:4])
    benchmark.measure_round()
    (row,) = benchmark.result["rows"]
    assert row["peaks"] == {"flops": 2e12, "source": "published"}
    assert row["mfu"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / 8e12)


def test_pipelined_stacks_say_how_long_a_slice_idles(rows):
    assert rows["pipelined"]["mesh"]["stack"] == 2
    assert rows["pipelined"]["microbatches"] == 4  # of a row each: half of the batch at a time
    assert rows["pipelined"]["bubble"] == pytest.approx(1 / 5)
    assert rows["baseline"]["bubble"] is None and rows["baseline"]["microbatches"] is None


def test_memory_is_that_of_a_device(rows):
    for (name, config), row in zip(VARIANTS, rows.values(), strict=True):
        # Parameters and two moments in float32; divided over fsdp they are a half of it on each device.
        state = 3 * 4 * count_parameters(config.model).total
        assert row["memory"]["compiled_bytes_per_device"] > state / 2, name
        assert row["memory"]["peak_bytes_per_device"] is None  # a CPU does not tell
    # The state is donated: it is not counted a second time among the results.
    config = config_of(tiny(vocab_size=64, num_stacks=1, ff_dim=4096))
    run = TrainingRun(config, training_mesh(config.mesh, jax.devices()[:1]))
    memory = run.compiled.memory_analysis()
    assert run.bytes_per_device < memory.argument_size_in_bytes + memory.temp_size_in_bytes + 1000
    assert memory.output_size_in_bytes > 1_000_000


def test_all_is_compiled_before_anything_is_measured_and_rounds_pass_over_all(result, told):
    texts = [text for text, _, _ in told]
    compiling = [f"compiling {name}" for name, _ in VARIANTS]
    rounds = [
        f"round {number} of 2: training {name}" for number in (1, 2) for name, _ in VARIANTS for _ in range(STEPS + 1)
    ]
    assert texts == compiling + rounds
    assert all(0 <= done < total for _, done, total in told)


def test_the_step_sees_random_rows_of_one_document_and_its_state_is_freed():
    config = config_of(tiny(vocab_size=64, num_stacks=1))
    run = TrainingRun(config, training_mesh(config.mesh, jax.devices()[:1]))
    with run.held():
        batch, lengths_V = run._inputs
        held = jax.tree.leaves(run._state)
        assert run.call() > 0
        assert all(leaf.is_deleted() for leaf in held)  # donated
        metrics = {name: float(value) for name, value in run.metrics.items()}
        assert metrics["tokens"] == ROWS * LENGTH
        # What a model that knows nothing makes of random ids.
        assert metrics["loss"] == pytest.approx(math.log(64), rel=0.05)
        assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2))
        assert math.isfinite(metrics["gradient_norm"]) and metrics["gradient_norm"] > 0
        for name in ("inputs", "targets"):
            assert len(np.unique(batch[name])) > 32
            assert np.asarray(batch[name]).min() >= 0 and np.asarray(batch[name]).max() < 64
        assert np.array_equal(batch["positions"], np.tile(np.arange(LENGTH), (ROWS, 1)))
        assert np.all(np.asarray(batch["segment_ids"]) == 1) and np.all(np.asarray(lengths_V) == 1)
        run.call()
        assert all(math.isfinite(float(value)) for value in run.metrics.values())
    assert run._state is None and run._inputs is None


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        (MeshConfig(stack=2), 12, "separate: training.global_batch / training.accumulation = 12 rows do not divide"),
        (MeshConfig(tensor=3), 8, "separate: mesh.data=1 x mesh.stack=1 x mesh.tensor=3 = 3 does not divide the 8"),
    ],
)
def test_what_does_not_divide_is_refused_by_the_name_of_the_variant(mesh, rows, message):
    config = config_of(tiny(vocab_size=64), mesh, global_batch=rows)
    with pytest.raises(UserError, match=message):
        TrainingBenchmark([("separate", config)], Settings(1, 1), lambda *_: None)


def test_what_does_not_fit_is_named_with_its_remedies(monkeypatch):
    monkeypatch.setattr(Peakmeter, "peaks", lambda *_, **__: Peaks(1e9, 1e9, None, "published"))
    remedies = "large: out of memory: .*global_batch=.*accumulation=1 .*remat='none'.*raise training.acc.*remat=layer"
    one = jax.devices()[:1]
    variants = [("large", VARIANTS[0][1])]
    benchmark = TrainingBenchmark(variants, Settings(1, 1), lambda *_: None, one)
    compiled = benchmark._subjects[0].run.bytes_per_device
    # Far too large a step is not even compiled; of one that is a byte too large, the compiler knows.
    for room in (100_000, compiled - 1):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "host_bytes", lambda room=room: room)
            with pytest.raises(RunFailed, match=remedies + ".* GB of the 0.0 GB that are here"):
                TrainingBenchmark(variants, Settings(1, 1), lambda *_: None, one)
    for text, kind in (("RESOURCE_EXHAUSTED: Out of memory", RunFailed), ("INTERNAL: broken", None)):

        def fail(run, text=text):
            raise jax.errors.JaxRuntimeError(text)

        monkeypatch.setattr(TrainingRun, "call", fail)
        with pytest.raises(kind or jax.errors.JaxRuntimeError, match=remedies if kind else "broken"):
            benchmark.measure_round()


def test_settings_out_of_range_are_refused():
    for settings, message in ((Settings(steps=0), "--steps=0 is below 1"), (Settings(rounds=0), "--rounds=0 is")):
        with pytest.raises(UserError, match=message):
            settings.check()
