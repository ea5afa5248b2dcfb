"""Decoding on a mesh equals decoding on one device: every variant, heads padded or repeated, from any sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from stagjax.config import MeshConfig
from stagjax.data.vocabulary import ByteVocabulary
from stagjax.decoding.generation import generate
from stagjax.decoding.loop import Decoder, teacher_forced_logits
from stagjax.decoding.placement import PADDED, REPEATED, Placement, head_layout, load, make_placement
from stagjax.decoding.reference import sequential_logits, sequential_recurrent_logits
from stagjax.decoding.sampling import Sampling
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh, training_mesh
from stagjax.sharding import parameter_shardings, stored_shardings
from tests.variants import RECURRENT, VARIANTS, params_of, tiny, tokens_of

decoded = jax.jit(teacher_forced_logits, static_argnums=(0, 3))
expected = jax.jit(sequential_logits, static_argnums=0)
expected_recurrent = jax.jit(sequential_recurrent_logits, static_argnums=(0, 3))


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


def a_slice_a_stack(config):
    """Return the largest mesh of eight devices that gives each stack a slice."""
    return DecodeMesh(stack=config.num_stacks, tensor=8 // config.num_stacks)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_slice_a_stack_equals_teacher_forced(name):
    config = VARIANTS[name]
    params, tokens_BT = params_of(config), tokens_of(config, 2, 9)
    placement = make_placement(config, a_slice_a_stack(config))
    assert relative(decoded(placement, params, tokens_BT, 4), expected(config, params, tokens_BT)) < 1e-5


@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("separate", DecodeMesh(data=2, stack=2, tensor=2), {}),
        ("separate", DecodeMesh(tensor=3), {}),  # 4 heads padded to 6, 24 hidden units in 8, 61 ids to 63
        ("separate", DecodeMesh(stack=2, tensor=4), {"rows": 8}),  # the form that a TPU wants
        ("parallel", DecodeMesh(stack=2, tensor=3), {"rows": 8}),
        ("window_1", DecodeMesh(stack=2, tensor=3), {"rows": 8}),  # 16 dimensions of the memory in 3 parts
        ("grouped_query", DecodeMesh(stack=2, tensor=4), {"heads": REPEATED}),  # 2 kv heads on 4 chips
        ("grouped_query", DecodeMesh(tensor=8), {"heads": REPEATED}),
        ("shared", DecodeMesh(data=2, tensor=2), {}),  # passes as rows of one product
        ("shared", DecodeMesh(data=4, stack=2), {"rows": 8}),
    ],
)
def test_any_mesh_and_form_equals_teacher_forced(name, sizes, options):
    config = VARIANTS[name]
    params, tokens_BT = params_of(config), tokens_of(config, 4, 9)
    placement = make_placement(config, sizes, **options)
    assert relative(decoded(placement, params, tokens_BT, 4), expected(config, params, tokens_BT)) < 1e-5


@pytest.mark.parametrize("name", ["shared", "shared_lag_2_linear", "shared_window_1"])
def test_recurrent_decoding_on_a_slice(name):
    config = RECURRENT[name]
    with jax.enable_x64(True):
        config = tiny(**{**vars(config), "compute_dtype": "float64"})
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params_of(config))
        tokens_BT = tokens_of(config, 2, 9)
        placement = make_placement(config, DecodeMesh(data=2, tensor=4), mode="recurrent")
        found = decoded(placement, params, tokens_BT, 4)
        assert relative(found, expected_recurrent(config, params, tokens_BT, 4)) < 1e-12


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, top_k=7), Sampling(temperature=0.9, top_p=0.8)]
)
def test_slices_draw_the_tokens_that_one_device_draws(sampling):
    config = tiny(vocab_size=300, cross_window=3, num_stacks=4)
    params, vocabulary = params_of(config), ByteVocabulary()
    prompts = ["def", "a longer prompt"]

    def drawn(sizes):
        decoder = Decoder(make_placement(config, sizes), params, vocabulary.size)
        return generate(config, decoder, vocabulary, prompts, max_new_tokens=24, sampling=sampling)

    for one, many in zip(drawn(DecodeMesh()), drawn(DecodeMesh(stack=4, tensor=2)), strict=True):
        assert one.ids == many.ids
        np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-4)
    assert one.ids == drawn(DecodeMesh(data=2, tensor=4))[1].ids


@pytest.mark.parametrize("column", ["training", "decoding"])
def test_parameters_are_placed_from_any_sharding(column):
    config = VARIANTS["separate_3"]
    params = jax.tree.map(np.asarray, params_of(tiny(**{**vars(config), "vocab_size": 64})))
    placement = make_placement(tiny(**{**vars(config), "vocab_size": 64}), DecodeMesh(stack=3, tensor=2))
    wanted = load(placement, params)
    if column == "training":
        source = jax.device_put(params, parameter_shardings(training_mesh(MeshConfig(tensor=2)), params))
        # A checkpoint restores onto the devices of the decoding mesh, whatever mesh it was saved from.
        source = jax.device_put(source, stored_shardings(placement.mesh, params))
    else:
        source = jax.device_put(params, stored_shardings(placement.mesh, params))
    assert not source["blocks"]["mlp"]["gate"].is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, load(placement, source), wanted)
    gate_up = wanted.stacks[0]["layers"][0]["gate_up"]
    assert gate_up.sharding == NamedSharding(placement.mesh, PartitionSpec(("stack",), ("tensor",)))
    assert gate_up.addressable_shards[0].data.size * 6 == gate_up.size


def test_a_chip_holds_its_stack_and_its_share_of_it():
    config = VARIANTS["separate"]
    params = params_of(config)
    placed = load(make_placement(config, DecodeMesh(stack=2, tensor=2)), params)
    down = placed.stacks[0]["layers"][1]["down"]  # [2 stacks x 24, 16] over (stack, tensor)
    second_chip_of_second_slice = [shard for shard in down.addressable_shards if shard.index[0].start == 36]
    np.testing.assert_array_equal(second_chip_of_second_slice[0].data, params["blocks"]["mlp"]["down"][1, 1, 12:])
    # stack 0 has no cross-attention: it runs with zeros, which exist in the placed copy only
    memory_in = placed.stacks[0]["memory_in"]
    assert not np.asarray(memory_in[:16]).any() and np.asarray(memory_in[16:]).any()


@settings(max_examples=200, deadline=None)
@given(
    kv=st.integers(1, 8), groups=st.integers(1, 6), tensor=st.integers(1, 16), how=st.sampled_from([PADDED, REPEATED])
)
def test_head_layouts_hold_every_head_and_add_it_once(kv, groups, tensor, how):
    layout = head_layout(tiny(num_heads=kv * groups, num_kv_heads=kv), tensor, how)
    assert layout.kv.shape[0] == layout.query.shape[0] == layout.out.shape[0] == tensor
    added = layout.out[layout.out >= 0]
    assert sorted(added) == list(range(kv * groups))
    assert ((layout.out == layout.query) | (layout.out == -1)).all()
    # Each chip's queries of a kv head follow each other, in the order of its kv heads.
    per_kv = layout.query.reshape(tensor, layout.kv.shape[1], -1)
    assert (np.where(per_kv < 0, layout.kv[:, :, None], per_kv // groups) == layout.kv[:, :, None]).all()


def test_twelve_heads_on_eight_chips_are_padded_to_sixteen():
    layout = head_layout(tiny(num_heads=12, num_kv_heads=12), 8)
    assert layout.query.shape == (8, 2) and (layout.query < 0).sum() == 4
    assert head_layout(tiny(num_heads=12, num_kv_heads=12), 8, REPEATED).query.shape == (8, 3)
    # A single kv head is held by all chips, its twelve queries are divided.
    assert head_layout(tiny(num_heads=12, num_kv_heads=1), 8).query.shape == (8, 2)


@pytest.mark.parametrize(
    ("config", "sizes", "mode", "message"),
    [
        (tiny(num_stacks=3), DecodeMesh(stack=2), "parallel", "mesh.stack=2 does not fit: model.num_stacks=3; use 3"),
        (tiny(shared_weights=True), DecodeMesh(stack=2), "recurrent", "recurrent decoding runs one pass; use 1"),
        (tiny(), DecodeMesh(stack=2, tensor=5), "parallel", "needs 10 devices, but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_the_model_is_refused(config, sizes, mode, message):
    with pytest.raises(UserError, match=message):
        make_placement(config, sizes, mode=mode)


def test_rows_that_do_not_divide_are_refused():
    config = tiny()
    decoder = Decoder(make_placement(config, DecodeMesh(data=2)), params_of(config))
    with pytest.raises(UserError, match="a batch of 3 rows does not divide over mesh.data=2; use a multiple of 2 rows"):
        next(decoder.chunks(np.ones((3, 2), np.int32), np.zeros(3, np.int32), 1, Sampling(), None, None))


def test_placements_are_compared_by_what_is_compiled():
    one, same = (make_placement(tiny(), DecodeMesh(stack=2, tensor=2)) for _ in range(2))
    assert one == same and hash(one) == hash(same) and isinstance(one, Placement)
    assert one != make_placement(tiny(), DecodeMesh(stack=2, tensor=2), rows=8)
