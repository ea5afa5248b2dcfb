"""What a model is compared with: the right shapes on the right devices, and nothing that means nothing."""

import dataclasses

import pytest

from stagjax.bench.cases import Subject, cases, deep, wide
from stagjax.bench.comparators import COMPARATORS
from stagjax.errors import UserError
from stagjax.experiment import load_config
from stagjax.mesh import DecodeMesh
from stagjax.model.accounting import count_parameters
from tests.variants import VARIANTS, tiny


def found(model, sizes, against=tuple(COMPARATORS), batch=2, context=16):
    return {case.key: case for case in cases(Subject("own", model, sizes), batch, context, against)}


def roles(model, sizes, **options):
    return [case.role for case in found(model, sizes, **options).values()]


def test_all_comparators_of_a_model_on_slices():
    model = tiny(num_stacks=2, layers_per_stack=3)
    every = list(found(model, DecodeMesh(stack=2, tensor=2), context=600).values())
    shown = [(case.name, case.role, tuple(case.placement.mesh.shape.values()), case.batch) for case in every]
    assert shown == [
        ("own", "model", (1, 2, 2), 2),
        ("baseline_6", "baseline", (1, 1, 4), 2),
        ("baseline_6", "baseline_slice", (1, 1, 2), 2),
        ("wide_3", "wide", (1, 1, 4), 2),
        ("wide_3", "wide_slice", (1, 1, 2), 2),
        ("own", "one_slice", (1, 1, 2), 2),
        ("baseline_6", "baseline_rows", (1, 1, 4), 4),
        ("baseline_3", "shallow_rows", (2, 1, 2), 4),
        ("own, window 512", "windows", (1, 2, 2), 2),
        ("own, window 128", "windows", (1, 2, 2), 2),
        ("own, window 1", "windows", (1, 2, 2), 2),
        ("own, parallel cross", "parallel_cross", (1, 2, 2), 2),
    ]
    by_name = {case.name: case.model for case in every}
    assert by_name["own, window 128"].cross_window == 128
    assert by_name["own, parallel cross"].cross_attention == "parallel"
    # The context is longer than the model's position table: it is lengthened, for all alike.
    assert {case.model.max_length for case in every} == {600}


def test_what_means_nothing_is_left_out():
    assert roles(VARIANTS["baseline"], DecodeMesh(tensor=2)) == ["model"]
    shared = tiny(shared_weights=True)
    assert "recurrent" in roles(shared, DecodeMesh(stack=2))
    assert "recurrent" not in roles(VARIANTS["separate"], DecodeMesh(stack=2))
    # On one device a slice is all there is, and no case is measured twice.
    one = roles(shared, DecodeMesh())
    assert "baseline" in one and "baseline_slice" not in one and "one_slice" not in one
    # A window that the context or the model's own window is within changes nothing.
    assert [case.name for case in found(tiny(cross_window=5), DecodeMesh(), ("windows",)).values()] == [
        "own",
        "own, window 1",
    ]
    assert roles(VARIANTS["parallel"], DecodeMesh(), against=("parallel_cross",)) == ["model"]


def test_the_plain_decoder_has_all_layers_and_the_wide_one_all_parameters():
    model = load_config("experiments/pile.py:separate_2x18").model
    assert deep(model) == load_config("experiments/pile.py:baseline_36").model
    assert wide(model) == load_config("experiments/pile.py:wide_18").model
    for variant in ("everything", "shared_4_linear", "grouped_query"):
        own = VARIANTS[variant]
        other = wide(own)
        unit = 8 * 3 * own.model_dim * own.layers_per_stack
        assert abs(count_parameters(other).total - count_parameters(own).total) <= unit / 2
        assert (other.num_stacks, other.layers_per_stack) == (1, own.layers_per_stack)


def test_every_case_has_a_key_of_its_own():
    model = tiny(shared_weights=True)
    every = found(model, DecodeMesh(data=2, stack=2, tensor=2))
    assert len({dataclasses.astuple(case)[1:] for case in every.values()}) == len(every)


def test_an_unknown_comparator_is_named():
    with pytest.raises(UserError, match="unknown --against 'baselin'; did you mean 'baseline'"):
        found(tiny(), DecodeMesh(), ("baselin",))
