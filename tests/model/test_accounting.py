"""Costs against the published figures and against the operations of the traced program."""

import math

import jax
import pytest

from stagjax.decoding.loop import abstract_state
from stagjax.decoding.placement import make_placement
from stagjax.experiment import load_config
from stagjax.model import accounting, stagformer
from tests.variants import RECURRENT, VARIANTS, tokens_of


@pytest.mark.parametrize(
    ("variant", "billions"),
    [("baseline_18", 1.58), ("baseline_36", 2.77), ("shared_2x18", 1.75), ("separate_2x18", 2.94)],
)
def test_the_papers_models_have_the_published_parameter_counts(variant, billions):
    config = load_config(f"experiments/pile.py:{variant}").model
    counts = accounting.count_parameters(config)
    assert round(counts.total / 1e9, 2) == billions
    parts = counts.embeddings + config.num_weight_sets * counts.per_stack + counts.cross_attention
    assert parts == counts.total


def matmul_flops(jaxpr, repeats=1):
    """Count 2 per multiply-add of every matrix product in a traced program, loops included."""
    total = 0
    for equation in jaxpr.eqns:
        inner = repeats * equation.params.get("length", 1) if equation.primitive.name == "scan" else repeats
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            output = math.prod(equation.outvars[0].aval.shape)
            total += repeats * 2 * output * math.prod(lhs[axis] for axis in contracted)
        for value in equation.params.values():
            for inside in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inside, "jaxpr"):
                    total += matmul_flops(inside.jaxpr, inner)
                elif hasattr(inside, "eqns"):
                    total += matmul_flops(inside, inner)
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_flops_are_those_of_the_matrix_products(name):
    config, T = VARIANTS[name], 8
    tokens_BT = tokens_of(config, 1, T)

    def logits(params):
        outputs = stagformer.forward(config, params, tokens_BT, tokens_BT, tokens_BT)
        return stagformer.logits(params, stagformer.readout(config, params, outputs.stacks))

    counted = matmul_flops(jax.make_jaxpr(logits)(stagformer.abstract_params(config)).jaxpr)
    # The program's attention computes all T slots of a short row and masks; by convention a causal half, or the
    # window, is counted.
    NH, L, P = config.num_heads * config.head_dim, config.layers_per_stack, config.num_stacks
    window = min(config.cross_window or T, T)
    masked_self = P * L * 4 * NH * (T - T / 2)
    masked_cross = 0 if window == 1 else (P - 1) * L * 4 * NH * (T - window * (1 - window / (2 * T)))
    assert accounting.forward_flops(config, T) == pytest.approx(counted / T - masked_self - masked_cross)
    assert accounting.training_flops(config, T) == 3 * accounting.forward_flops(config, T)


@pytest.mark.parametrize("name", ["baseline", "separate", "shared", "window_1", "grouped_query"])
def test_cache_bytes_are_those_of_the_caches(name):
    config = VARIANTS[name]
    context = 16
    state = abstract_state(make_placement(config), 1, context)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.caches))
    expected = accounting.cache_bytes(config, context)
    if config.shared_weights:  # passes that run as one have equal caches: the first one's of the memory stays empty
        expected["cross"] *= config.num_stacks / (config.num_stacks - 1)
    assert sum(expected.values()) == size


def test_recurrent_decoding_runs_one_pass():
    config = RECURRENT["shared"]
    one = accounting.decode_flops(config, 32, recurrent=True)
    assert one < accounting.decode_flops(config, 32) < 2 * one
    assert accounting.cache_bytes(config, 32, recurrent=True)["self"] * 2 == accounting.cache_bytes(config, 32)["self"]
