"""Prefill pipelined over chunks and slices equals the one that runs stacks in turn: logits, caches, memory, outbox."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stagjax.bench import hlo
from stagjax.bench.collectives import collectives
from stagjax.bench.programs import chip_bytes, prefill_program
from stagjax.decoding import prefill as prefilling
from stagjax.decoding.cache import STATE_SPECS
from stagjax.decoding.loop import ROWS, spmd, teacher_forced_logits
from stagjax.decoding.placement import load, make_placement, specs
from stagjax.decoding.prefill import all_y, choose_chunks, last_y, prefill
from stagjax.decoding.reference import sequential_logits
from stagjax.decoding.step import decode_step, logits
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh
from tests.variants import VARIANTS, params_of, tiny, tokens_of

T, STEPS, CAPACITY = 8, 3, 14
STACKED = {name: config for name, config in VARIANTS.items() if config.num_stacks > 1}

# Of a row that fills the prompt, one that begins within the first chunk, one at a chunk's edge, one in the last chunk.
STARTS = (0, 1, 4, 7)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def decoded(placement, placed, tokens_BT, starts_B, prompt_length, chunks):
    """Return the logits of the prompts' slots and of the steps behind them, and the states before and after these."""

    def part(params, tokens_BT, starts_B):
        outs, first = prefill(placement, params, tokens_BT[:, :prompt_length], starts_B, CAPACITY, chunks)

        def body(state, tokens_B):
            y_BD, state = decode_step(placement, params, state, tokens_B)
            return state, logits(placement, params, y_BD)

        prompt_TBD = jnp.swapaxes(all_y(placement, params, outs), 0, 1)
        prompt_TBV = jax.lax.map(lambda y_BD: logits(placement, params, y_BD), prompt_TBD)
        last_BV = logits(placement, params, last_y(placement, params, outs))
        state, steps_TBV = jax.lax.scan(body, first, tokens_BT[:, prompt_length:].T)
        return jnp.swapaxes(jnp.concatenate([prompt_TBV, last_BV[None], steps_TBV]), 0, 1), first, state

    divided = PartitionSpec("data", None, ("stack", "tensor"))
    program = spmd(placement, part, (specs(placed), ROWS, ROWS), (divided, STATE_SPECS, STATE_SPECS))
    logits_BTV, first, state = program(placed, tokens_BT, starts_B)
    return logits_BTV[..., : placement.config.vocab_size], first, state


def run(config, sizes, chunks, starts=STARTS, prompt_length=T, seed=0, **options):
    placement = make_placement(config, sizes, **options)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(config.compute_dtype, jnp.float32)), params_of(config, seed)
    )
    tokens_BT = tokens_of(config, len(starts), prompt_length + STEPS)
    found = decoded(
        placement, load(placement, params), tokens_BT, jnp.asarray(starts, jnp.int32), prompt_length, chunks
    )
    return jax.tree.map(np.asarray, found)


def assert_same(found, wanted, tolerance):
    """Compare array by array, as a share of the largest value; integers exactly."""
    found, wanted = jax.tree.map(np.asarray, (found, wanted))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, path
        assert np.isfinite(ours).all(), path
        largest = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path))


def without_padding(logits_BTV, starts, prompt_length=T):
    """Return the logits of real slots; what stands before a row's start means nothing."""
    slots = np.r_[np.arange(prompt_length), prompt_length - 1, prompt_length + np.arange(STEPS)]
    return logits_BTV * (slots >= np.asarray(starts)[:, None])[..., None]


def a_slice_a_stack(config, **sizes):
    return DecodeMesh(stack=config.num_stacks, tensor=4 // config.num_stacks or 1, **sizes)


def check(config, sizes, tolerance, chunks=(2, 4), **options):
    """Assert that a prefill in chunks leaves what one in a single chunk leaves, and that one device says the same."""
    starts = options.get("starts", STARTS)
    whole = run(config, sizes, 1, **options)
    for count in chunks:
        assert_same(run(config, sizes, count, **options), whole, tolerance)
    length = {k: v for k, v in options.items() if k == "prompt_length"}
    alone, _, _ = run(config, None, None, starts, **length)
    real = functools.partial(without_padding, starts=starts, **length)
    assert_same(real(whole[0]), real(alone), tolerance)


@pytest.mark.parametrize("name", STACKED)
def test_chunks_change_nothing(name):
    config = VARIANTS[name]
    check(config, a_slice_a_stack(config), 1e-5)


@pytest.mark.parametrize("name", ["shared", "everything"])
def test_chunks_change_nothing_in_float64(name):
    with jax.enable_x64(True):
        config = tiny(**{**vars(VARIANTS[name]), "compute_dtype": "float64"})
        check(config, a_slice_a_stack(config), 1e-12)


@pytest.mark.parametrize("name", ["window_5", "lag_0", "lag_2_window_4_shared", "everything"])
def test_chunks_and_the_steps_behind_them_equal_the_sequential_reference(name):
    config = VARIANTS[name]
    params, tokens_BT = params_of(config), tokens_of(config, 2, T + STEPS)
    placement = make_placement(config, a_slice_a_stack(config))
    found = jax.jit(teacher_forced_logits, static_argnums=(0, 3, 4))(placement, params, tokens_BT, T, 4)
    assert_same(found, sequential_logits(config, params, tokens_BT), 1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lag_2_window_4_shared", {"rows": 8}),
        ("separate", {"starts": (7, 6, 5, 4)}),  # no row begins in the first chunk
        ("lag_2", {"prompt_length": 4, "starts": (0, 3, 1, 2)}),  # chunks of one slot: the lag reaches over them
        ("window_5", {"prompt_length": 12, "starts": (0, 11, 5, 3)}),  # the ring begins anew within a chunk
    ],
)
def test_chunks_change_nothing_for_any_rows(name, options):
    config = VARIANTS[name]
    check(config, a_slice_a_stack(config), 1e-5, (4,), **options)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("grouped_query", DecodeMesh(data=2, stack=2, tensor=2)),
        ("shared", DecodeMesh(data=4, stack=2)),
        ("parallel", DecodeMesh(stack=2, tensor=3)),
    ],
)
def test_chunks_change_nothing_on_any_mesh(name, sizes):
    check(VARIANTS[name], sizes, 1e-5, (4,))


@pytest.mark.parametrize("name", ["separate", "separate_3", "lag_0", "lag_2", "window_1"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_round_hands_over_one_chunk(name, chunks):
    config, batch, length = VARIANTS[name], 2, 16
    placement = make_placement(config, DecodeMesh(stack=config.num_stacks, tensor=2))
    traceable = prefill_program(placement, batch, length, chunks)
    program = hlo.parse(traceable.function.lower(*traceable.arguments).compile().as_text())
    found = collectives(program, placement.mesh.shape)
    rounds = chunks + config.num_stacks - 1
    (handoff,) = (c for c in found if c.kind == "collective-permute")
    assert handoff.axis == "stack" and handoff.count == rounds
    assert handoff.bytes == batch * length // chunks * config.model_dim * 4
    # Besides it, slices look up the embedding of the whole prompts together, once, and combine one slot's outputs.
    across = [c for c in found if "stack" in c.axis and c is not handoff and "embedding" not in c.op_name]
    assert across and all(c.bytes <= batch * config.model_dim * 4 for c in across)
    # Those of a layer, once a round; in a single chunk the compiler sees that the first do not change with it.
    sums = [c for c in found if c.axis == "tensor"]
    assert {c.count for c in sums} - ({1} if chunks == 1 else set()) == {rounds}
    assert all(c.bytes == handoff.bytes for c in sums)


def test_what_a_prefill_reads():
    placement = make_placement(VARIANTS["separate_3"], DecodeMesh(stack=3, tensor=2))
    plain, pipelined = (prefill_program(placement, 2, 16, chunks) for chunks in (1, 4))
    # Each slice reads its stack in each of 3 rounds, or of 6.
    assert pipelined.read - plain.read == 3 * chip_bytes(plain.arguments[0].stacks)


def test_how_many_chunks(monkeypatch):
    placement = make_placement(tiny(), DecodeMesh(stack=2, tensor=2))
    chosen = functools.partial(choose_chunks, placement)
    assert [chosen(8, length) for length in (1280, 256, 250, 64, 62, 17)] == [8, 8, 5, 2, 1, 1]
    # On accelerators rounds of few rows wait for the weights: chunks of one row are longer.
    monkeypatch.setattr(prefilling, "rows_worth_a_round", lambda placement: 256)
    assert [chosen(batch, 1280) for batch in (1, 2, 3, 4)] == [5, 8, 8, 8]
    assert chosen(1, 509) == 1 and choose_chunks(make_placement(tiny()), 8, 1280) == 1


@pytest.mark.parametrize(
    ("sizes", "chunks", "message"),
    [
        (DecodeMesh(stack=2), 3, "chunks=3 does not divide prompts of 4 slots; use one of 1, 2, 4"),
        (DecodeMesh(stack=2), 0, "chunks=0 does not divide prompts of 4 slots"),
        (DecodeMesh(tensor=2), 2, "chunks=2 does not fit mesh.stack=1"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(sizes, chunks, message):
    with pytest.raises(UserError, match=message):
        teacher_forced_logits(make_placement(tiny(), sizes), params_of(tiny()), tokens_of(tiny(), 1, 6), 4, chunks)
