"""From a baseline to stacks: which layer goes where, what stays equal, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.errors import UserError
from stagjax.model import stagformer
from stagjax.model.conversion import DEFAULT_LAYERS, LAYERS, convert_config, convert_params
from tests.variants import VARIANTS, params_of, tiny, tokens_of


def experiment(model):
    return Config(model, DataConfig(row_length=32), TrainingConfig())


def converted(source, params=None, layers=DEFAULT_LAYERS, **arguments):
    """Return (source's params, new model, new params)."""
    params = params_of(source) if params is None else params
    target = convert_config(experiment(source), **arguments).model
    return params, target, convert_params(source, params, target, layers)


@functools.partial(jax.jit, static_argnums=0)
def outputs(config, params, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return stagformer.forward(config, params, tokens_BT, positions_BT, jnp.ones_like(tokens_BT))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens_BT):
    y_BTD = stagformer.readout(config, params, outputs(config, params, tokens_BT).stacks)
    return stagformer.logits(params, y_BTD)


@pytest.mark.parametrize(
    ("stacks", "changes"),
    [
        (2, {}),
        (2, {"cross_attention": "parallel"}),
        (2, {"cross_window": 1}),
        (3, {"lag": 0, "cross_window": 3}),
        (3, {"combine": "linear"}),
    ],
)
def test_shared_stacks_of_a_baseline_have_its_logits(stacks, changes):
    source = tiny(num_stacks=1, num_kv_heads=2)
    params, target, new = converted(source, to="shared", num_stacks=stacks, changes=changes)
    tokens_BT = tokens_of(source, 2, 20)
    np.testing.assert_array_equal(logits(target, new, tokens_BT), logits(source, params, tokens_BT))
    assert (target.num_stacks, target.layers_per_stack, target.shared_weights) == (stacks, 2, True)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda leaf: leaf.shape, stagformer.abstract_params(target))


def test_zero_cross_out_lets_gradients_through():
    source = tiny(num_stacks=1)
    _, target, new = converted(source, to="shared")
    assert not new["cross"]["attention"]["out"].any()
    assert all(np.asarray(new["cross"]["attention"][name]).std() > 0.1 for name in ("query", "key", "value"))
    tokens_BT = tokens_of(source, 1, 8)
    gradient = jax.jit(jax.grad(lambda params: logits(target, params, tokens_BT).var()))(new)
    assert np.abs(gradient["cross"]["attention"]["out"]).max() > 0


@pytest.mark.parametrize("layers", ["contiguous", DEFAULT_LAYERS])
def test_separate_stacks_run_their_share_of_the_layers(layers):
    source = tiny(num_stacks=1, layers_per_stack=6)
    params, target, new = converted(source, layers=layers, to="separate", num_stacks=3)
    dealt = LAYERS[layers](3, 2)
    assert sorted(sum(dealt, [])) == list(range(6))
    tokens_BT = tokens_of(source, 2, 12)
    short = dataclasses.replace(source, layers_per_stack=2)
    for s, out_BTD in enumerate(outputs(target, new, tokens_BT).stacks):
        share = params | {"blocks": jax.tree.map(lambda leaf: leaf[:, np.array(dealt[s])], params["blocks"])}  # noqa: B023
        np.testing.assert_array_equal(out_BTD, outputs(short, share, tokens_BT).stacks[0])


def test_which_layer_goes_where():
    assert LAYERS["contiguous"](2, 3) == [[0, 1, 2], [3, 4, 5]]
    assert LAYERS["interleaved"](2, 3) == [[0, 2, 4], [1, 3, 5]]
    assert LAYERS["contiguous_reversed"](3, 2) == [[4, 5], [2, 3], [0, 1]]
    assert LAYERS["interleaved_reversed"](2, 3) == [[1, 3, 5], [0, 2, 4]]
    assert DEFAULT_LAYERS in LAYERS


@pytest.mark.parametrize("variant", ["shared_4_linear", "window_1_parallel"])
def test_any_model_can_be_given_more_positions_and_ids(variant):
    source = VARIANTS[variant]
    params, target, new = converted(source, changes={"max_length": 80, "vocab_size": 64})
    tokens_BT = tokens_of(source, 2, 20)
    wanted, got = np.asarray(logits(source, params, tokens_BT)), np.asarray(logits(target, new, tokens_BT))
    np.testing.assert_allclose(got[..., :61], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(got[..., 61:], wanted.mean(-1, keepdims=True).repeat(3, -1), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(new["position_embedding"][:64], params["position_embedding"])
    assert 0.015 < np.asarray(new["position_embedding"][64:]).std() < 0.025


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (tiny(), {"to": "shared"}, "--to=shared: the model has 2 stacks already; only a baseline"),
        (tiny(num_stacks=1), {"to": "both"}, "unknown --to 'both'"),
        (tiny(num_stacks=1), {"to": "shared", "num_stacks": 1}, "--stacks=1 is below 2"),
        (
            tiny(num_stacks=1, layers_per_stack=6),
            {"to": "separate", "num_stacks": 4},
            "--stacks=4 does not divide the 6 layers of the baseline; use 2, 3, 6",
        ),
        (tiny(), {"changes": {"ff_dim": 99}}, "unknown field of the model for a conversion 'model.ff_dim'"),
        (tiny(), {"changes": {"max_length": 63}}, "model.max_length=63 is below the 64 that are trained"),
        (tiny(), {"changes": {"vocab_size": 60}}, "model.vocab_size=60 is below the 61"),
        (tiny(), {"changes": {"cross_window": 1}}, "cross/attention/key.* are not in both models"),
        (tiny(cross_window=1), {"changes": {"cross_window": 4}}, "cross/.* are not in both models"),
        (tiny(combine="linear"), {"changes": {"combine": "last"}}, "the parameters combine are not in both models"),
        (tiny(), {"changes": {"lag": -1}}, "model.lag=-1 is below 0"),
    ],
)
def test_what_makes_no_sense_is_refused(source, arguments, message):
    with pytest.raises(UserError, match=message):
        convert_config(experiment(source), **arguments)


def test_a_combination_may_be_added_and_the_mesh_of_training_is_not_kept():
    source = tiny()
    params, target, new = converted(source, changes={"combine": "linear"})
    tokens_BT = tokens_of(source, 1, 9)
    np.testing.assert_array_equal(logits(target, new, tokens_BT), logits(source, params, tokens_BT))
    pipelined = dataclasses.replace(experiment(tiny(num_stacks=3, combine="linear")), mesh=MeshConfig(stack=3))
    assert convert_config(pipelined, changes={"max_length": 65}).mesh.stack == 1
    earlier = dataclasses.replace(pipelined, training=TrainingConfig(schedule="cosine_from_zero"))
    assert convert_config(earlier, changes={"max_length": 65}).training.schedule == "cosine"


def test_layers_by_another_name_are_refused():
    source = tiny(num_stacks=1)
    with pytest.raises(UserError, match="unknown --layers 'interleave'; did you mean 'interleaved'"):
        converted(source, layers="interleave", to="separate")
