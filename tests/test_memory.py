"""Memory that does not suffice, also for real: what says so, and what passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stagjax import memory
from stagjax.errors import RunFailed


@pytest.mark.parametrize(
    "ask",
    [lambda: jax.jit(lambda: jnp.zeros(1 << 46, jnp.float32) + 1)(), lambda: np.empty(1 << 50)],
    ids=["device", "host"],
)
def test_what_is_too_large_is_one_line(ask):
    with pytest.raises(RunFailed) as raised, memory.told("three rows do not fit; take two", lambda: "; step 4 is good"):
        ask()
    (line,) = str(raised.value).splitlines()
    assert line.startswith("out of memory: three rows do not fit; take two (") and line.endswith("); step 4 is good")


@pytest.mark.parametrize(
    "error", [ValueError("x"), jax.errors.JaxRuntimeError("INTERNAL: broken"), KeyboardInterrupt()]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)), memory.told("x"):
        raise error


def test_a_need_beyond_the_machine_is_refused_before_it_is_met():
    memory.check_host(memory.host_bytes(), "all of it")
    with pytest.raises(RunFailed, match=r"out of memory: more \([\d,.]+ GB of the [\d,.]+ GB that are here\)"):
        memory.check_host(2 * memory.host_bytes(), "more")


def test_what_is_held_counts_on_all_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("x",))
    sharding = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    divided = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding("x"))
    whole = jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=sharding())
    assert memory.held_bytes({"a": divided, "b": whole}) == 8 * 3 * 4 + 4 * 5 * 2
