"""Topologies that are not there: their devices, what is said of wrong ones, and programs compiled for them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from stagjax.bench import hlo, waiting
from stagjax.bench.collectives import collectives
from stagjax.bench.ledger import HOPS, Network, waits
from stagjax.bench.topology import stand_in, topology_devices, uncached
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh, coordinates, decoding_mesh
from tests.waits import HANG


@pytest.fixture
def libtpu():
    return pytest.importorskip("libtpu")


def compiled(function, mesh, out):
    """Compile a function of one array, [8, 128] a chip, and read it."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("stack", "tensor"), out_specs=out, check_vma=False)
    shape = (8 * mesh.shape["stack"], 128 * mesh.shape["tensor"])
    return hlo.parse(jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text())


def places(mesh):
    """Return coordinates [stack, tensor, dimension]."""
    flat = [coordinates(device)[1:] for device in mesh.devices.flat]
    return np.array(flat).reshape(mesh.shape["stack"], mesh.shape["tensor"], -1)


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v4:2x2x1", 4, "TPU v4"),
        ("v5e:2x2", 4, "TPU v5 lite"),
        ("v5p:2x2x2", 8, "TPU v5"),
        ("v6e:2x4", 8, "TPU v6 lite"),
        ("tpu7x:2x2x1", 8, "TPU7x"),
    ],
)
def test_devices_of_a_topology(libtpu, name, count, kind):
    devices = topology_devices(name)
    assert [device.id for device in devices] == list(range(count))
    assert {device.device_kind for device in devices} == {kind}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", "unknown TPU family in --topology 'v5x'; did you mean 'v5p'? known: tpu7x, v4, v5e, v5p, v6e"),
        ("v5e", "--topology=v5e: '' is no layout of chips; use one like v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:4x4"),
        ("v5e:16", "--topology=v5e:16: '16' is no layout of chips; use one like v5e:4x4"),
        ("v5e:0x4", "--topology=v5e:0x4: '0x4' is no layout of chips"),
        ("v5e:4x4,", "--topology=v5e:4x4,: '4x4,' is no layout of chips"),
        ("v5e:4x4x2", "--topology=v5e:4x4x2: '4x4x2' is no layout of chips"),
        ("v5p:4x4", "--topology=v5p:4x4: '4x4' is no layout of chips"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(UserError) as refused:
        topology_devices(name)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "layout"), [("v5e:3x3", "3x3"), ("v6e:16x32", "16x32"), ("v5e:2x8", "2x8")])
def test_slices_that_do_not_exist_are_refused(name, layout):
    with pytest.raises(UserError) as refused:
        topology_devices(name)
    known = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
    assert str(refused.value) == f"--topology={name}: {name[:3]} has no slices of {layout} chips; use one of {known}"


def test_hosts_that_are_cut_in_two_are_refused(libtpu):
    with pytest.raises(UserError) as refused:
        topology_devices("v5p:3x2x5")
    rule = "a host has 2x2 chips, so that the first two sides must be even"
    assert str(refused.value) == f"--topology=v5p:3x2x5: {rule}; use e.g. v5p:4x2x5"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "ABORTED: Internal error when accessing libtpu multi-process lockfile. Run ...",
            "another process holds libtpu, which admits one at a time; "
            "wait for it, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 for both",
        ),
        ("INTERNAL: no\nsuch thing", "libtpu refuses it (INTERNAL: no such thing); use one like v5e:4x4"),
    ],
)
def test_errors_of_libtpu_become_one_line(libtpu, monkeypatch, capfd, error, message):
    def fails(*args, **kwargs):
        os.write(2, b"noise\n")
        raise RuntimeError(error)

    monkeypatch.setattr(topologies, "get_topology_desc", fails)
    with pytest.raises(UserError) as refused:
        topology_devices("v5e:4x4")
    assert str(refused.value).startswith(f"--topology=v5e:4x4: {message}")
    assert capfd.readouterr().err == ""


def test_libtpu_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"not installed; install it with: pip install 'stagjax\[tpu\]'"):
        topology_devices("v5e:4x4")


@pytest.mark.parametrize("has_tpus", [False, True])
def test_the_environment_is_changed_only_while_loading_and_where_there_are_no_tpus(libtpu, monkeypatch, has_tpus):
    seen = {}
    real = topologies.get_topology_desc

    def watched(*args, **kwargs):
        seen.update(os.environ)
        return real(*args, **kwargs)

    monkeypatch.setattr(topologies, "get_topology_desc", watched)
    monkeypatch.setattr("stagjax.libtpu.has_tpus", lambda: has_tpus)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "0")
    topology_devices("v5e:2x2")
    assert ("TPU_WORKER_HOSTNAMES" in seen) is not has_tpus
    assert "TPU_WORKER_HOSTNAMES" not in os.environ
    assert seen["ALLOW_MULTIPLE_LIBTPU_LOAD"] == os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "0", "set by the user"


def test_what_native_code_says_is_shown_when_the_program_is_at_fault(monkeypatch, libtpu, capfd):
    def fails(*args, **kwargs):
        os.write(2, b"a clue\n")
        raise TypeError

    monkeypatch.setattr(topologies, "get_topology_desc", fails)
    with pytest.raises(TypeError):
        topology_devices("v5e:4x4")
    assert capfd.readouterr().err == "a clue\n"


def test_three_slices_of_four_chips_are_compiled_without_a_word(libtpu):
    """On 12 of 16 chips themselves the compiler would end the process."""
    code = """
import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from stagjax.bench.topology import stand_in, topology_devices
from stagjax.mesh import DecodeMesh, decoding_mesh
devices = topology_devices("v5e:4x4")
mesh = stand_in(decoding_mesh(DecodeMesh(stack=3, tensor=4), devices), devices)
axes = ("stack", "tensor")
total = jax.shard_map(lambda x: jax.lax.psum(x, axes), mesh=mesh, in_specs=P(axes), out_specs=P())
jax.jit(total).lower(jax.ShapeDtypeStruct((96, 128), "float32")).compile()
"""
    environment = {name: value for name, value in os.environ.items() if "TPU" not in name}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANG)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_what_is_compiled_for_chips_that_are_not_there_is_not_kept(libtpu, cache, recwarn):
    """JAX could not read it again, and would say so."""
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=2), topology_devices("v5e:2x2"))
    for _ in range(2):
        jax.clear_caches()
        with uncached():
            compiled(lambda x: 2 * x, mesh, P("stack", "tensor"))
    assert [str(warning.message) for warning in recwarn] == []
    assert list(cache.iterdir()) == []
    jax.jit(lambda x: 3 * x)(1.0)
    assert len(list(cache.iterdir())) == 1, "what runs here is kept as before"


def test_a_mesh_of_all_chips_stands_for_itself(libtpu):
    devices = topology_devices("v5e:4x4")
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=8), devices)
    assert stand_in(mesh, devices) is mesh


def test_devices_of_no_topology_stand_for_themselves():
    mesh = decoding_mesh(DecodeMesh(tensor=4))
    assert stand_in(mesh, jax.devices()) is mesh


@pytest.mark.parametrize(
    ("name", "sizes", "extent"),
    [
        ("v5e:4x4", DecodeMesh(tensor=8), (4, 2, 1)),
        ("v5e:16x16", DecodeMesh(tensor=16), (4, 4, 1)),
        ("v5e:16x16", DecodeMesh(tensor=1), (1, 1, 1)),
        ("v5e:16x16", DecodeMesh(stack=3, tensor=1), (3, 1, 1)),
        ("v5p:4x4x4", DecodeMesh(stack=2, tensor=8), (4, 2, 2)),
        ("v6e:16x16", DecodeMesh(stack=2, tensor=64), (16, 8, 1)),
    ],
)
def test_a_rectangle_is_moved_as_it_is(libtpu, name, sizes, extent):
    devices = topology_devices(name)
    mesh = decoding_mesh(sizes, devices)
    other = stand_in(mesh, devices)
    assert dict(other.shape) == dict(mesh.shape)
    assert other.axis_types == mesh.axis_types
    moved = places(mesh) - places(mesh).min(axis=(0, 1))
    assert (moved == places(other)).all()
    assert tuple(places(other).max(axis=(0, 1)) + 1) == extent
    assert sorted(device.id for device in other.devices.flat) == list(range(mesh.size))


def test_a_rectangle_in_the_midst_is_moved_to_the_corner(libtpu):
    devices = topology_devices("v5e:8x8")
    chosen = np.array([device for device in devices if min(device.coords[:2]) >= 4]).reshape(2, 8)
    mesh = Mesh(chosen, ("stack", "tensor"), axis_types=(AxisType.Explicit, AxisType.Auto))
    other = stand_in(mesh, devices)
    assert (places(other) == places(mesh) - np.array([4, 4, 0])).all()
    assert (other.axis_names, other.axis_types) == (mesh.axis_names, mesh.axis_types)


@pytest.mark.parametrize(
    ("name", "sizes", "extent"),
    [
        ("v5e:4x4", DecodeMesh(stack=3, tensor=4), (2, 6, 1)),  # an L of three squares
        ("v5e:16x16", DecodeMesh(stack=3, tensor=8), (4, 6, 1)),  # 12x2, for which libtpu does not compile
        ("v5e:16x16", DecodeMesh(stack=3, tensor=16), (4, 12, 1)),  # 12x4, likewise
        ("v5e:16x16", DecodeMesh(stack=3, tensor=32), (8, 12, 1)),
    ],
)
def test_slices_keep_their_shape_where_the_whole_cannot(libtpu, name, sizes, extent):
    devices = topology_devices(name)
    mesh = decoding_mesh(sizes, devices)
    other = stand_in(mesh, devices)
    assert tuple(places(other).max(axis=(0, 1)) + 1) == extent
    for before, after in zip(places(mesh), places(other), strict=True):
        assert sorted(np.ptp(before, axis=0)) == sorted(np.ptp(after, axis=0))
    assert sorted(device.id for device in other.devices.flat) == list(range(mesh.size))


def test_chips_in_no_order_are_compiled_as_some_rectangle(libtpu):
    devices = topology_devices("v5e:4x4")
    diagonal = Mesh(np.array([devices[i] for i in (0, 5, 10, 15)]).reshape(1, 4), ("stack", "tensor"))
    assert places(stand_in(diagonal, devices)).tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]]


@pytest.mark.parametrize(
    ("sizes", "count", "extent"),
    [
        (DecodeMesh(tensor=4), 4, (2, 2, 1)),
        (DecodeMesh(stack=3, tensor=2), 6, (1, 3, 1)),
        (DecodeMesh(tensor=1), 1, None),
    ],
)
def test_both_devices_of_a_chip_stay_together(libtpu, sizes, count, extent):
    devices = topology_devices("tpu7x:2x2x4")
    mesh = decoding_mesh(sizes, devices)
    other = stand_in(mesh, devices)
    assert len({coordinates(device) for device in other.devices.flat}) == count
    if extent and sizes.stack > 1:
        assert tuple(places(other).max(axis=(0, 1)) + 1) == extent
        for pair in other.devices[0]:
            assert [device.core_on_chip for device in pair] == [0, 1] and pair[0].coords == pair[1].coords


def test_chips_that_no_topology_has_are_refused(libtpu):
    devices = topology_devices("v5e:16x16")
    mesh = Mesh(np.array(devices[:34]), ("tensor",))
    with pytest.raises(UserError, match="does not compile for 34 of the 256 chips; use all of them, or a power of two"):
        stand_in(mesh, devices)


def test_a_tpu_program_is_read(libtpu):
    """Two slices of two chips: a loop of five all-reduces, a handoff for which nothing waits, a combination."""
    devices = topology_devices("v5e:2x2")
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=2), devices)

    def step(x):
        out = jax.lax.fori_loop(0, 5, lambda i, y: jax.lax.psum(jnp.sin(y), "tensor"), x)
        handoff = jax.lax.ppermute(out, "stack", [(0, 1)])
        return jnp.tanh(jax.lax.psum(out, "stack")), handoff

    program = compiled(step, mesh, (P(), P("stack", "tensor")))
    found = {c.kind + " " + c.axis: c for c in collectives(program, mesh.shape)}
    assert set(found) == {"all-reduce tensor", "collective-permute stack", "all-reduce stack"}
    assert (found["all-reduce tensor"].count, found["all-reduce tensor"].bytes) == (5, 8 * 128 * 4)
    handoff = found["collective-permute stack"]
    assert handoff.asynchronous
    assert waiting.waiting(program, handoff.instruction) == []
    assert found["all-reduce stack"] in waiting.between(program, handoff.instruction, mesh.shape).collectives
    cycles = program.cycles()
    assert cycles.unknown_loops == ()
    assert cycles.by_component["sin"] > cycles.by_component["tanh"] > 0, "the loop's cycles count five times"
    lines = waits(program, Network.of(mesh, devices), HOPS)
    assert [(line.axis, line.count, line.hops) for line in lines if line.kind == "all-reduce"] == [
        ("tensor", 5, 1),
        ("stack", 1, 1),
    ]
    assert next(line for line in lines if line.kind == "collective-permute").ms == 0


def test_a_tpu_program_that_uses_its_handoff(libtpu):
    devices = topology_devices("v5e:2x2")
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=2), devices)
    program = compiled(lambda x: jax.lax.psum(jax.lax.ppermute(x, "stack", [(0, 1)]), "tensor"), mesh, P("stack"))
    handoff = next(c for c in collectives(program, mesh.shape) if c.kind == "collective-permute")
    assert [other.kind for other in waiting.waiting(program, handoff.instruction)] == ["all-reduce"]
    assert sum(c.count for c in waiting.chain(program, mesh.shape)) == 2
    line = next(x for x in waits(program, Network.of(mesh, devices), HOPS) if x.kind == "collective-permute")
    assert line.ms == pytest.approx(1e-3 * line.latency_us)


def test_kernels_are_counted(libtpu):
    pallas = pytest.importorskip("jax.experimental.pallas")
    devices = topology_devices("v5e:2x2")
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=2), devices)

    def doubled(x):
        def kernel(x_ref, out_ref):
            out_ref[...] = 2 * x_ref[...]

        return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    assert compiled(doubled, mesh, P("stack", "tensor")).cycles().kernels == 1
