"""Latencies by hand: hops on real coordinates, both calibrations, and what a step waits for."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from stagjax.bench import hlo
from stagjax.bench.collectives import Collective, collectives
from stagjax.bench.ledger import HOPS, PUBLISHED, Calibration, Network, collectives_ms, ledgers, waits
from stagjax.bench.waiting import chain
from stagjax.errors import UserError
from stagjax.hardware import CHIPS
from stagjax.mesh import DecodeMesh, decoding_mesh
from tests.bench.snippets import SERIAL, STEP
from tests.test_mesh import grid

V5E = next(chip for chip in CHIPS if chip.kind == "TPU v5e")
V5P = next(chip for chip in CHIPS if chip.kind == "TPU v5p")


def network(extent, sizes, chip=V5E):
    return Network(decoding_mesh(sizes, grid(*extent)), extent, chip)


def collective(groups, kind="all-reduce", size=0):
    return Collective(kind, "tensor", "psum", 1, size, tuple(map(tuple, groups)), "name")


def slices(net):
    """Return the groups of the tensor axis."""
    return np.arange(net.mesh.size).reshape(-1, net.mesh.shape["tensor"]).tolist()


@pytest.mark.parametrize(
    ("extent", "sizes", "chip", "hops"),
    [
        ((4, 4, 1), DecodeMesh(tensor=16), V5E, 6),
        ((4, 4, 1), DecodeMesh(stack=2, tensor=8), V5E, 4),
        ((4, 4, 1), DecodeMesh(stack=4, tensor=4), V5E, 2),
        ((16, 16, 1), DecodeMesh(tensor=256), V5E, 16),  # 8 + 8: both dimensions wrap around
        ((8, 16, 1), DecodeMesh(tensor=128), V5E, 15),  # 7 + 8: only the one of 16 does
        ((16, 16, 1), DecodeMesh(stack=2, tensor=8), V5E, 4),
        ((4, 4, 4), DecodeMesh(tensor=64), V5P, 6),  # 2 + 2 + 2: multiples of 4 wrap around
        ((2, 2, 4), DecodeMesh(tensor=16), V5P, 4),  # 1 + 1 + 2
    ],
)
def test_hops_are_the_diameter_of_the_groups(extent, sizes, chip, hops):
    net = network(extent, sizes, chip)
    groups = slices(net)
    assert net.hops(collective(groups)) == hops
    assert net.latency_us(collective(groups), HOPS) == pytest.approx(2 * hops)
    assert net.latency_us(collective(groups, "all-gather"), HOPS) == pytest.approx(hops)
    assert net.latency_us(collective(groups, "reduce-scatter"), HOPS) == pytest.approx(hops)


def test_the_figures_of_the_literature():
    """12 us on a 4x4 slice and 8 us on 2x4 by hops; 6 and 7 us published."""
    whole, half = network((4, 4, 1), DecodeMesh(tensor=16)), network((4, 4, 1), DecodeMesh(stack=2, tensor=8))
    assert whole.latency_us(collective(slices(whole)), HOPS) == 12
    assert half.latency_us(collective(slices(half)), HOPS) == 8
    assert whole.latency_us(collective(slices(whole)), PUBLISHED) == 6
    assert half.latency_us(collective(slices(half)), PUBLISHED) == 7


def test_a_permute_goes_straight():
    """From each chip of a 4x2 slice to the one two lines further; the widest way counts, and links that wrap."""
    net = network((4, 4, 1), DecodeMesh(stack=2, tensor=8))
    handoff = collective([(i, i + 8) for i in range(8)], "collective-permute")
    for calibration in (HOPS, PUBLISHED):
        assert net.latency_us(handoff, calibration) == 2
    assert net.latency_us(collective([(0, 1), (0, 15)], "collective-permute"), HOPS) == 3 + 3
    ring = network((16, 16, 1), DecodeMesh(tensor=256))
    assert ring.latency_us(collective([(0, 15)], "collective-permute"), HOPS) == 1


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 7 / 8),
        ("reduce-scatter", 7 / 8),
        ("all-to-all", 7 / 8),
        ("all-gather", 7),
        ("collective-permute", 1),
    ],
)
def test_bytes_go_around_a_ring(kind, sent):
    net = network((4, 4, 1), DecodeMesh(stack=2, tensor=8))
    groups = [(i, i + 8) for i in range(8)] if kind == "collective-permute" else slices(net)
    size = 50_000  # a microsecond at 50 GB/s
    for calibration in (HOPS, PUBLISHED):
        alone = net.latency_us(collective(groups, kind), calibration)
        assert net.latency_us(collective(groups, kind, size), calibration) - alone == pytest.approx(sent)
    double = dataclasses.replace(HOPS, links=2)
    alone = net.latency_us(collective(groups, kind), HOPS)
    assert net.latency_us(collective(groups, kind, size), double) - alone == pytest.approx(sent / 2)


def test_every_constant_can_be_changed():
    net = network((4, 4, 1), DecodeMesh(stack=2, tensor=8))
    groups, whole = slices(net), [range(16)]
    own = Calibration("own", 0.5, 3, 2, 4, small_us=10, large_us=20, large_chips=9)
    assert net.latency_us(collective(groups), own) == 10 + 0.5 * 3 * 4
    assert net.latency_us(collective(whole), own) == 20 + 0.5 * 3 * 6
    assert net.latency_us(collective(groups, "all-gather"), own) == 10 + 0.5 * 2 * 4
    assert net.latency_us(collective([(0, 8)], "collective-permute"), own) == 4 * 2


def eight():
    """Return two slices of 2x2 chips on a 4x2 topology."""
    return network((4, 2, 1), DecodeMesh(stack=2, tensor=4))


def sent_us(*parts):
    """Return the microseconds of 1 KiB a chip, `parts` times."""
    return sum(parts) * 1024 / 50e9 * 1e6


def test_a_step_waits_for_everything_but_a_hidden_handoff():
    """Slices of diameter 2, stacks 2 apart, all chips 4 apart; 200 cycles at 1.5 GHz hide 0.13 us."""
    lines = waits(hlo.parse(STEP), eight(), HOPS)
    assert [(line.kind, line.axis, line.count, line.hops) for line in lines] == [
        ("all-reduce", "tensor", 7, 2),
        ("collective-permute", "stack", 1, 2),
        ("all-reduce", "stack", 1, 2),
        ("all-reduce", "stack,tensor", 1, 4),
    ]
    in_slice, handoff, combination, sampling = lines
    assert in_slice.ms == pytest.approx(7e-3 * (4 + sent_us(2 * 3 / 4)))
    assert handoff.latency_us == handoff.hidden_us == pytest.approx(2 + sent_us(1))
    assert handoff.ms == 0
    assert combination.ms == pytest.approx(1e-3 * (4 + sent_us(2 * 1 / 2)))
    assert sampling.ms == pytest.approx(1e-3 * (8 + sent_us(2 * 7 / 8)))
    total = sum(line.ms for line in lines)
    assert total == pytest.approx(collectives_ms(chain(hlo.parse(STEP), SIZES), eight(), HOPS))


SIZES = {"data": 1, "stack": 2, "tensor": 4}


def test_a_step_waits_for_a_serial_handoff():
    handoff = waits(hlo.parse(SERIAL), eight(), HOPS)[1]
    assert (handoff.kind, handoff.hidden_us) == ("collective-permute", 0)
    assert handoff.ms == pytest.approx(1e-3 * (2 + sent_us(1)))
    total = sum(line.ms for line in waits(hlo.parse(SERIAL), eight(), HOPS))
    assert total == pytest.approx(collectives_ms(chain(hlo.parse(SERIAL), SIZES), eight(), HOPS))


def test_a_handoff_is_hidden_only_as_far_as_there_is_work():
    """Far apart: 1000 us a hop, of which the two all-reduces and the cycles hide what they take."""
    slow = dataclasses.replace(HOPS, permute_hop_us=1000)
    _, handoff, combination, sampling = waits(hlo.parse(STEP), eight(), slow)
    cycles_ms = 200 / 1.5e9 * 1e3
    assert handoff.ms == pytest.approx(2 + 1e-3 * sent_us(1) - combination.ms - sampling.ms - cycles_ms)


def test_ledgers_add_computing_and_waiting():
    program = hlo.parse(STEP)
    found = {(ledger.compute, ledger.calibration): ledger for ledger in ledgers(program, eight(), {"hbm": 1.0})}
    assert list(found) == [("compiler", "hops"), ("hbm", "hops"), ("compiler", "published"), ("hbm", "published")]
    compiler, memory = found["compiler", "published"], found["hbm", "published"]
    assert compiler.compute_ms == pytest.approx(7230 / 1.5e9 * 1e3)
    assert memory.compute_ms == pytest.approx(1.0)
    assert memory.collectives_ms == pytest.approx(9 * 7e-3, rel=0.01), "groups of 2, 4 and 8 chips are small ones"
    assert memory.step_ms == pytest.approx(memory.compute_ms + memory.collectives_ms)
    assert found["hbm", "hops"].collectives_ms == pytest.approx(sum(line.ms for line in waits(program, eight(), HOPS)))
    with_kernels = ledgers(program, eight(), {"flops": 2.0}, (HOPS,), kernels_ms=3.0)
    assert [ledger.compute_ms for ledger in with_kernels] == [pytest.approx(compiler.compute_ms + 3), 2.0]
    written = json.loads(json.dumps(memory.to_dict()))
    assert written["step_ms"] == memory.step_ms
    assert written["lines"][0]["ms"] == memory.lines[0].ms


def test_without_a_clock_there_is_no_compilers_ledger():
    net = dataclasses.replace(eight(), chip=dataclasses.replace(V5E, clock=None))
    assert {ledger.compute for ledger in ledgers(hlo.parse(STEP), net, {"hbm": 1.0})} == {"hbm"}


def test_the_network_is_taken_from_all_devices_of_the_topology():
    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        coords: tuple[int, ...]
        device_kind: str = "TPU v5 lite"

    devices = [Device(chip.id, chip.coords) for chip in grid(8, 16, 1)]
    net = Network.of(decoding_mesh(DecodeMesh(tensor=4), devices), devices)
    assert (net.sides, net.chip.kind) == ((8, 16, 1), "TPU v5 lite")


def test_devices_without_links_are_refused():
    mesh = Mesh(np.array(jax.devices()), ("tensor",))
    with pytest.raises(UserError, match="cannot be estimated for 'cpu', whose links are not known"):
        Network.of(mesh, jax.devices())
    device = types.SimpleNamespace(device_kind="TPU v99", coords=(0, 0, 0))
    with pytest.raises(UserError, match="cannot be estimated for 'TPU v99'"):
        Network.of(mesh, [device])


def test_a_calibration_says_nothing_of_other_chips():
    program = hlo.parse(STEP)
    net = dataclasses.replace(eight(), chip=V5P)
    assert {ledger.calibration for ledger in ledgers(program, net, {"hbm": 1.0})} == {"hops"}
    own = dataclasses.replace(PUBLISHED, kinds=None)
    assert {ledger.calibration for ledger in ledgers(program, net, {"hbm": 1.0}, (own,))} == {"published"}


def test_collectives_of_a_chain_are_added_up():
    step = collectives(hlo.parse(STEP), SIZES)[0]
    assert collectives_ms([step], eight(), HOPS) == pytest.approx(7e-3 * (4 + sent_us(2 * 3 / 4)))
