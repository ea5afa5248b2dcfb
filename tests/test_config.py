"""Every bad experiment, by its message; and that the good ones survive JSON."""

import dataclasses
import json
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagjax.config import Config, config_differences, from_json, to_json
from stagjax.config_rules import FIELDS, divisors
from stagjax.errors import UserError
from stagjax.experiment import load_config

STDLIB = "experiments/stdlib.py"


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("experiments/nothing.py:x", [], "there is no file 'experiments/nothing.py'"),
        ("Makefile:x", [], "'Makefile' is not a Python file"),
        ("stagjax/errors.py:x", [], "defines no get_config"),
        (STDLIB, [], "lacks the variant; known: baseline_3"),
        (f"{STDLIB}:seperate_2x3", [], "unknown variant 'seperate_2x3'; did you mean 'separate_2x3'"),
        (f"{STDLIB}:baseline_3,local", [], "variant option 'local' is neither"),
        (f"{STDLIB}:baseline_3,model.layers=3", [], "did you mean 'model.layers_per_stack'"),
        (f"{STDLIB}:baseline_3", ["training.learn_rate=1"], "did you mean 'training.learning_rate'"),
        (f"{STDLIB}:baseline_3", ["optimizer.name=adam"], "unknown config field 'optimizer.name'"),
        (f"{STDLIB}:baseline_3", ["training.steps=many"], "training.steps='many' is str, not int"),
        (f"{STDLIB}:baseline_3", ["training.steps=True"], "training.steps=True is bool, not int"),
        (f"{STDLIB}:baseline_3", ["model.num_stacks=0"], "model.num_stacks=0 is below 1"),
        (f"{STDLIB}:baseline_3", ["model.num_kv_heads=3"], "=3 does not divide model.num_heads=4; use one of 1, 2"),
        (f"{STDLIB}:baseline_3", ["model.head_dim=7"], "model.head_dim=7 is odd.*use 8"),
        (f"{STDLIB}:baseline_3", ["model.lag=-1"], "model.lag=-1 is below 0"),
        (f"{STDLIB}:baseline_3", ["model.cross_window=0"], "model.cross_window=0 is below 1"),
        (f"{STDLIB}:baseline_3", ["model.combine=lineer"], "unknown model.combine 'lineer'; did you mean 'linear'"),
        (f"{STDLIB}:baseline_3", ["model.compute_dtype=fp8"], "unknown model.compute_dtype 'fp8'"),
        (f"{STDLIB}:baseline_3", ["model.cross_attention=both"], "known: parallel, sequential"),
        (f"{STDLIB}:baseline_3", ["data.source=web"], "unknown data.source 'web'"),
        (f"{STDLIB}:baseline_3", ["data.row_length=4096"], "data.row_length=4096 is over model.max_length=1024"),
        (f"{STDLIB}:baseline_3", ["data.validation_percent=90"], "data.validation_percent=90 is over 50"),
        (f"{STDLIB}:baseline_3", ["training.accumulation=3"], "into training.accumulation=3 parts; use one of 1, 2, 4"),
        (f"{STDLIB}:baseline_3", ["training.warmup_steps=9999"], "training.warmup_steps=9999 is over training.steps"),
        (f"{STDLIB}:baseline_3", ["training.loss_chunks=3"], "=3 does not divide data.row_length=256; use one of 1, 2"),
        (f"{STDLIB}:baseline_3", ["training.microbatches=0"], "training.microbatches=0 is below 1; use 1 or more"),
        (f"{STDLIB}:baseline_3", ["mesh.stack=2"], "mesh.stack=2 is neither 1 nor model.num_stacks=1: a pipeline has"),
        (f"{STDLIB}:separate_2x3", ["mesh.stack=3"], "mesh.stack=3 is neither 1 nor model.num_stacks=2: a pipeline"),
        (f"{STDLIB}:baseline_3", ["training.remat=all"], "unknown training.remat 'all'"),
        (f"{STDLIB}:baseline_3", ["training.clip_norm=0"], "training.clip_norm=0 is not above 0; use more than 0"),
        (f"{STDLIB}:baseline_3", ["model.lag=256"], "model.lag=256 is beyond the row, data.row_length=256.* most 255"),
        (f"{STDLIB}:baseline_3", ["training.weight_decay=600"], "=600.0 times training.learning_rate=0.002 is over 1"),
        (f"{STDLIB}:baseline_3", ["data.path="], "data.path='' names nothing; use the path of a directory, or None"),
        (f"{STDLIB}:baseline_3", ["training.steps={[]: 1}"], "training.steps='{\\[\\]: 1}' is str, not int"),
        (f"{STDLIB}:baseline_3", ["training.schedule=linear"], "unknown training.schedule 'linear'"),
    ],
)  # fmt: skip
def test_bad_experiments_are_refused_by_field_value_rule_and_remedy(spec, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(spec, overrides)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("training.beta1", "9", "is over 1; use 0 up to but not 1"),
        ("training.beta1", "1", "is not below 1; use 0 up to but not 1"),
        ("training.beta2", "1.5", "is over 1"),
        ("training.beta2", "-0.1", "is below 0"),
        ("training.epsilon", "-1", r"is below 0; use more than 0, to 1 \(the usual value is 1e-8\)"),
        ("training.epsilon", "0", "is not above 0"),
        ("training.epsilon", "1e-50", "is 0 in float32"),
        ("training.learning_rate", "True", "is bool, not float; use 0 or more"),
        ("training.learning_rate", "1e999", "is not finite"),
        ("training.learning_rate", "1e39", "is infinite in float32"),
        ("training.learning_rate", "1" + 400 * "0", "is not finite"),
        ("training.final_learning_rate", "50", r"is over 1; use 0 to 1 \(a share of the peak\)"),
        ("training.clip_norm", "1e999", "is not finite"),
        ("training.spike_threshold", "-1", "is below 0"),
        ("training.seed", "-1", "is below 0; use 0 to 4294967295"),
        ("training.seed", str(2**32), "is over 4294967295"),
        ("training.steps", str(2**31), "is over 2147483647"),
        ("training.scan_layers", "1", "is int, not bool; use True or False"),
        ("model.rope_base", "0", "is below 1"),
        ("model.norm_eps", "-1", "is below 0"),
        ("model.norm_eps", "0", "is not above 0"),
        ("model.shared_weights", "0.0", "is float, not bool"),
        ("mesh.fsdp", "0", "is below 1; use 1 or more, or None"),
        ("mesh.fsdp", "True", "is bool, not int"),
    ],
)
def test_values_without_meaning_are_refused(field, value, rule):
    with pytest.raises(UserError, match=rf"^{field}=\S+ {rule}") as refused:
        load_config(f"{STDLIB}:baseline_3", [f"{field}={value}"])
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 250


def test_every_field_has_one_rule_and_every_rule_a_field():
    tree = load_config(f"{STDLIB}:baseline_3").to_dict()
    assert set(FIELDS) == {f"{section}.{field}" for section, fields in tree.items() for field in fields}


BASE = load_config(f"{STDLIB}:separate_2x3").to_dict()
ANYTHING = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=9),
    st.sampled_from([-1, 0, 1, 2**31, 2**32, 10**400, 1e-320, -0.0, "none", b"", [], {}, (1,), 1j]),
)


@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
def test_any_value_is_taken_as_it_is_or_refused_in_one_line_by_its_name(name, value):
    section, field = name.split(".")
    default = BASE[section][field]
    try:
        config = Config.from_dict(BASE | {section: BASE[section] | {field: value}})
    except UserError as error:
        (line,) = str(error).splitlines()
        assert field in line and (
            "; use " in line or "; known: " in line or "; did you mean" in line or "lower" in line
        )
        return
    found = getattr(getattr(config, section), field)
    assert found == value
    if isinstance(default, bool):
        assert isinstance(found, bool)
    elif isinstance(default, int | float):
        assert type(found) is type(default) and math.isfinite(found) and found >= 0
    assert from_json(to_json(config)) == config


def test_divisors_of_large_numbers_take_no_time():
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(2**31 - 1) == [1, 2**31 - 1]


def test_overrides_are_literals_and_come_last():
    config = load_config(
        f"{STDLIB}:separate_2x3,training.steps=7,training.warmup_steps=1",
        ["model.cross_window=5", "training.learning_rate=1"],
    )
    assert (config.training.steps, config.model.cross_window, config.training.learning_rate) == (7, 5, 1.0)
    assert isinstance(config.training.learning_rate, float)
    again = load_config(f"{STDLIB}:window_64", ["model.cross_window=None"])
    assert again.model == load_config(f"{STDLIB}:separate_2x3").model


def test_an_experiment_file_that_does_not_run_is_the_users_error(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_this_name")
    with pytest.raises(UserError, match="mine.py' does not run: ModuleNotFoundError: No module named 'nothing_of_"):
        load_config(f"{file}:x")
    file.write_text("def get_config(arg):\n    return {}['x']")
    with pytest.raises(UserError, match="get_config does not run: KeyError: 'x'"):
        load_config(f"{file}:x")


def test_a_variant_is_the_base_and_its_difference():
    base, shared = load_config(f"{STDLIB}:separate_2x3"), load_config(f"{STDLIB}:shared_2x3")
    assert dataclasses.replace(base.model, shared_weights=True) == shared.model
    assert (base.data, base.training) == (shared.data, shared.training)


@pytest.mark.parametrize("file", ["stdlib", "pile"])
def test_every_variant_is_valid_also_when_run_locally(file):
    import importlib.util

    spec = importlib.util.spec_from_file_location(file, f"experiments/{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.VARIANTS:
        full, local = (load_config(f"experiments/{file}.py:{name}{option}") for option in ("", ",runlocal"))
        assert full == from_json(to_json(full))
        assert local.training.steps == 60
        assert local.data.source == "stdlib"
        # What makes the variant is left as it is.
        for field in ("num_stacks", "shared_weights", "cross_window", "lag", "combine", "cross_attention"):
            assert getattr(full.model, field) == getattr(local.model, field)


def test_only_free_fields_may_differ_in_a_resumed_run():
    stored = load_config(f"{STDLIB}:separate_2x3")
    free = dataclasses.replace(stored.training, log_every=3, remat="layer", keep_last=9, accumulation=2, microbatches=4)
    assert config_differences(stored, dataclasses.replace(stored, training=free)) == []
    model = dataclasses.replace(stored.model, lag=2)
    training = dataclasses.replace(stored.training, seed=1)
    assert config_differences(stored, dataclasses.replace(stored, model=model, training=training)) == [
        "model.lag: 1 -> 2",
        "training.seed: 0 -> 1",
    ]


def test_stored_configs_of_another_schema_are_refused():
    tree = load_config(f"{STDLIB}:baseline_3").to_dict()
    with pytest.raises(UserError, match="config section 'data' is missing"):
        Config.from_dict({name: value for name, value in tree.items() if name != "data"})
    with pytest.raises(UserError, match="unknown config section 'models'; did you mean 'model'"):
        Config.from_dict(tree | {"models": {}})
    with pytest.raises(UserError, match="model.vocab_size is missing"):
        Config.from_dict(tree | {"model": {}})
    for damaged in ([], None, "x", tree | {"model": []}, tree | {1: {}}):
        with pytest.raises(UserError, match="table|unknown config section '1'"):
            Config.from_dict(damaged)


def test_a_config_that_an_earlier_build_stored_keeps_its_learning_rates():
    stored = json.loads(pathlib.Path("tests/data/earlier_build.json").read_text())["config"]
    assert Config.from_dict(stored).training.schedule == "cosine_from_zero"
    assert from_json(to_json(Config.from_dict(stored))).training.schedule == "cosine_from_zero"
    assert load_config(f"{STDLIB}:baseline_3").training.schedule == "cosine"
