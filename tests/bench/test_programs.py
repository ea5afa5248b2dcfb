"""The compiled decode step, held to what must always be true of it: who talks to whom, of what size, who waits.

On eight CPU devices for every variant, and compiled ahead of time for sixteen TPU chips at full size.
"""

import dataclasses
import importlib.util

import pytest

from stagjax.bench import hlo, waiting
from stagjax.bench.collectives import collectives
from stagjax.bench.programs import decode_program
from stagjax.bench.topology import topology_devices
from stagjax.decoding.placement import RECURRENT, make_placement
from stagjax.experiment import load_config
from stagjax.hardware import chip_of
from stagjax.mesh import DecodeMesh
from tests.variants import VARIANTS, tiny

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
BATCH = 2

# What sampling needs: score, logit, largest logit, sum and id of each row.
SAMPLING_BYTES = 5 * 4


def compile_step(placement, batch, context):
    traceable = decode_program(placement, batch, context)
    # The logits are divided over all chips of a data group: so is the table that they are products with.
    table = traceable.arguments[0].embedding
    chips = placement.slices * placement.tensor
    assert table.sharding.shard_shape(table.shape)[0] == -(-placement.config.vocab_size // chips)
    compiled = traceable.function.lower(*traceable.arguments).compile()
    program = hlo.parse(compiled.as_text())
    return compiled, program, collectives(program, placement.mesh.shape)


def check_step(placement, program, found, batch):
    """Assert invariant 3 of a decode step."""
    config = placement.config
    width = 2 if config.compute_dtype == "bfloat16" else 4
    rows = -(-batch * placement.passes // placement.rows) * placement.rows
    handoffs = [c for c in found if c.kind == "collective-permute"]
    wanted = 0
    if placement.slices > 1:
        wanted = placement.slices - 1 if config.lag == 0 else 1
    assert sum(c.count for c in handoffs) == wanted
    for handoff in handoffs:
        assert handoff.axis == "stack"
        assert handoff.bytes == batch * config.model_dim * width
        assert set(handoff.groups) == {
            (group + s * placement.tensor + i, group + (s + 1) * placement.tensor + i)
            for group in range(0, placement.mesh.size, placement.slices * placement.tensor)
            for s in range(placement.slices - 1)
            for i in range(placement.tensor)
        }
        # Nothing in the step waits for it; without staggering, everything does.
        assert bool(waiting.waiting(program, handoff.instruction)) == (config.lag == 0)
        # With a lag of two it is sent before anything was computed: it has the whole step to arrive.
        assert bool(waiting.sources(program, handoff.instruction)) == (config.lag < 2)
    for collective in found:
        if collective.kind == "collective-permute":
            continue
        if "all_gather" in collective.primitive or collective.kind == "all-gather":
            # The TPU compiler makes a small gather an all-reduce of every chip's part, zeros elsewhere.
            chips = placement.slices * placement.tensor
            assert collective.bytes <= chips * SAMPLING_BYTES * max(batch, 8)
        elif collective.axis == "tensor":
            # The sums of a layer, over the chips of a slice, padded rows included.
            assert collective.kind == "all-reduce"
            # (Without staggering the rounds repeat each other's first sums, which the compiler may join.)
            joined = placement.slices if config.lag == 0 else 1
            assert collective.bytes <= joined * rows * config.model_dim * width
        else:
            # Embedding lookup and combination.
            assert collective.kind == "all-reduce"
            assert collective.axis in ("stack", "stack,tensor")
            assert collective.bytes <= batch * config.model_dim * width
    across = [c for c in found if c.axis in ("stack", "stack,tensor") and c.kind != "collective-permute"]
    assert sum(c.count for c in across) <= 3


def serial_handoffs(program, placement):
    path = waiting.chain(program, placement.mesh.shape, lambda c: 1.0 if c.kind == "collective-permute" else 1e-6)
    return sum(c.count for c in path if c.kind == "collective-permute")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_on_eight_devices(name):
    config = VARIANTS[name]
    placement = make_placement(config, DecodeMesh(stack=config.num_stacks, tensor=8 // config.num_stacks))
    _, program, found = compile_step(placement, BATCH, 16)
    check_step(placement, program, found, BATCH)
    if config.num_stacks > 1:
        assert serial_handoffs(program, placement) == (config.num_stacks - 1 if config.lag == 0 else 1)
    if config.lag == 0:
        return
    sums = [c for c in found if "attention" in c.op_name or "mlp" in c.op_name]
    assert {c.axis for c in sums} == {"tensor"}
    cross = config.num_stacks > 1 and config.cross_attention == "sequential" and config.cross_window != 1
    assert sum(c.count for c in sums) == config.layers_per_stack * (3 if cross else 2)


def test_rows_over_groups_and_recurrent_decoding():
    config = VARIANTS["separate"]
    placement = make_placement(config, DecodeMesh(data=2, stack=2, tensor=2))
    _, program, found = compile_step(placement, 4, 16)
    check_step(placement, program, found, 4 // 2)
    placement = make_placement(tiny(shared_weights=True), DecodeMesh(tensor=8), mode=RECURRENT)
    _, program, found = compile_step(placement, BATCH, 16)
    check_step(placement, program, found, BATCH)
    assert {c.axis for c in found} == {"tensor"}


def test_one_device_talks_to_nobody():
    placement = make_placement(VARIANTS["everything"])
    _, _, found = compile_step(placement, BATCH, 16)
    assert found == []


@needs_libtpu
@pytest.mark.parametrize(
    ("variant", "sizes", "mode"),
    [
        ("baseline_36", DecodeMesh(tensor=16), "parallel"),
        ("shared_2x18", DecodeMesh(stack=2, tensor=8), "parallel"),
        ("shared_2x18", DecodeMesh(tensor=16), "recurrent"),
        ("separate_2x18", DecodeMesh(stack=2, tensor=8), "parallel"),
        ("separate_2x18_window_1", DecodeMesh(stack=2, tensor=8), "parallel"),
        ("separate_2x18_lag_2", DecodeMesh(stack=2, tensor=8), "parallel"),
        ("separate_4x9", DecodeMesh(stack=4, tensor=4), "parallel"),
    ],
)
def test_full_size_models_on_sixteen_chips(variant, sizes, mode):
    devices = topology_devices("v5e:4x4")
    config = load_config(f"experiments/pile.py:{variant}").model
    placement = make_placement(config, sizes, mode=mode, devices=devices)
    compiled, program, found = compile_step(placement, 8, 1280)
    check_step(placement, program, found, 8)
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert needed < chip_of(devices[0]).memory
    # The caches are written where they lie.
    assert memory.alias_size_in_bytes > 0.99 * (memory.output_size_in_bytes - 8 * 1024)
    if sizes.stack > 1:
        (handoff,) = (c for c in found if c.kind == "collective-permute")
        assert handoff.asynchronous
        overlapped = waiting.between(program, handoff.instruction, placement.mesh.shape)
        # Behind the logits with a lag of one; behind every layer with a lag of two.
        layers = [c for c in overlapped.collectives if c.axis == "tensor"]
        assert overlapped.cycles > 10_000
        assert len(layers) == (3 * config.layers_per_stack if config.lag > 1 else 0)


@needs_libtpu
def test_lag_zero_waits_for_every_slice():
    config = load_config("experiments/pile.py:separate_4x9").model
    placement = make_placement(
        dataclasses.replace(config, lag=0, layers_per_stack=2),
        DecodeMesh(stack=4, tensor=4),
        devices=topology_devices("v5e:4x4"),
    )
    _, program, found = compile_step(placement, 8, 1280)
    check_step(placement, program, found, 8)
    assert serial_handoffs(program, placement) == 3
