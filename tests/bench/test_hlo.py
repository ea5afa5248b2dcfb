"""The text of compiled programs: bytes, groups, loops, cycles."""

import jax
import jax.numpy as jnp
import pytest

from stagjax.bench import hlo
from stagjax.bench.hlo_text import read_groups, shape_bytes
from tests.bench.snippets import OVERLAPPED, STEP


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[8,64]{1,0:T(8,128)(2,1)S(1)}", 1024),
        ("(s32[]{:T(128)}, bf16[7,64]{1,0}, /*index=2*/pred[3]{0})", 4 + 896 + 3),
        ("f8e4m3fn[10]{0}", 10),
        ("s4[10]{0}", 5),
        ("c64[2]", 16),
        ("token[]", 0),
    ],
)
def test_sizes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{{0, 2},{1, 3}}", ((0, 2), (1, 3))),
        ("{}", ()),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("[1,8]<=[8]", (tuple(range(8)),)),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=2,'c'=2] {'c','a'}", ((0, 4, 1, 5), (2, 6, 3, 7))),
        ("mesh['a'=4] {'a'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_every_notation_of_groups(text, groups):
    assert read_groups(text) == groups


def test_a_program_is_read():
    program = hlo.parse(STEP)
    assert program.chips == 8
    assert list(program.entry.instructions)[:3] == ["embedded", "weights", "memory"]
    assert program.entry.root.operands == ("checked", "handoff-done")
    assert program.entry.instructions["embedded"].op_name == "params['embedding']"
    psum = program.computations["body"].instructions["psum.1"]
    assert (psum.kind, psum.operand_bytes, psum.channel) == ("all-reduce", 8 * 64 * 2, 1)
    assert psum.groups == ((0, 1, 2, 3), (4, 5, 6, 7)), "the braces in backend_config are no groups"
    assert program.entry.instructions["handoff-start"].groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert program.computations["body"].instructions["state"].bytes == 4 + 1024 + 7 * 64 * 64 * 2 + 4


def test_trips_are_found_where_the_compiler_does_not_state_them():
    """From 2 to 9 in steps that the loop carries."""
    assert hlo.parse(STEP).entry.instructions["while.1"].trips == 7
    assert hlo.parse(STEP.replace("constant(9)", "constant(10)")).entry.instructions["while.1"].trips == 8
    assert (
        hlo.parse(STEP.replace("%one.1 = s32[]{:T(128)} constant(1)", "%one.1 = s32[]{:T(128)} constant(3)"))
        .entry.instructions["while.1"]
        .trips
        == 3
    )


def test_a_loop_of_unknown_trips_counts_once_and_is_flagged():
    for change in (
        ("direction=LT", "direction=NE"),
        ("tuple(%next, %psum.1, %w, %one)", "tuple(%next, %psum.1, %w, %next)"),
    ):
        cycles = hlo.parse(STEP.replace(*change)).cycles()
        assert cycles.unknown_loops == ("while.1",)
        assert cycles.total == 1000 + 200 + 30


def test_cycles_are_multiplied_by_trips_and_absurd_ones_left_out():
    cycles = hlo.parse(STEP).cycles()
    assert cycles.total == 7 * 1000 + 200 + 30
    assert cycles.by_opcode == {"fusion(convolution)": 7000, "multiply": 200, "add": 30}
    assert {name: cycles.by_component[name] for name in ("mlp", "dot_general", "logits", "sampling")} == {
        "mlp": 7000,
        "dot_general": 7000,
        "logits": 200,
        "sampling": 30,
    }
    assert cycles.kernels == 1
    assert cycles.unknown_loops == ()


def test_an_overlapped_collective_is_one():
    program = hlo.parse(OVERLAPPED)
    found = [program.collective(instruction) for instruction, _ in program.walk()]
    assert [instruction.name for instruction in found if instruction] == ["all-gather.1"]


@pytest.mark.parametrize("text", ["", "not a module", STEP[: STEP.index("ENTRY")]])
def test_what_is_no_module_is_refused(text):
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.parse(text)


def test_groups_in_an_unknown_notation_are_refused():
    with pytest.raises(ValueError, match="psum.1: no groups of chips that could be read"):
        hlo.parse(STEP.replace("replica_groups=[2,4]<=[8]", "replica_groups=mesh['a'=2]"))


def test_the_cpu_compilers_programs_are_read():
    @jax.jit
    def looped(x):
        return jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(y) @ y, x)

    program = hlo.parse(looped.lower(jax.ShapeDtypeStruct((4, 4), jnp.float32)).compile().as_text())
    assert program.chips == 1
    loops = [instruction for instruction, _ in program.walk() if instruction.opcode == "while"]
    assert [loop.trips for loop in loops] == [5]
    assert max(times for _, times in program.walk()) == 5
    assert program.cycles().total == 0

    nested = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jax.lax.fori_loop(0, 4, lambda j, z: z @ z, y), x))
    program = hlo.parse(nested.lower(jax.ShapeDtypeStruct((4, 4), jnp.float32)).compile().as_text())
    assert max(times for _, times in program.walk()) == 12


def test_of_a_conditional_every_branch_is_walked():
    lowered = jax.jit(lambda flag, x: jax.lax.cond(flag, lambda x: jnp.sin(x @ x), jnp.cos, x)).lower(True, jnp.eye(4))
    program = hlo.parse(lowered.compile().as_text())
    conditional = next(i for i, _ in program.walk() if i.opcode == "conditional")
    inside = {i.name for body in program.bodies(conditional) for i in body.instructions.values()}
    assert len(program.bodies(conditional)) == 2
    assert inside <= {i.name for i, _ in program.walk()}


def test_an_instruction_may_go_over_several_lines():
    """As those of Pallas kernels with metadata do: a line of it begins with what else ends a computation."""
    kernel = (
        "ENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n"
        '  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={meta={\n'
        '"blocks":"{\\"q\\": 640}"\n}}, metadata={op_name="jit(f)/attention/pallas_call"}\n'
        '  ROOT %sum = f32[8]{0} add(%kernel, %x), backend_config={"estimated_cycles":"7"}\n}\n'
    )
    program = hlo.parse(f"HloModule jit_f, is_scheduled=true, num_partitions=1\n\n{kernel}")
    assert list(program.entry.instructions) == ["x", "kernel", "sum"]
    assert program.entry.instructions["kernel"].op_name == "jit(f)/attention/pallas_call"
    assert (program.cycles().total, program.cycles().kernels) == (7, 1)
