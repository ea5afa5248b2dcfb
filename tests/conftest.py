"""Settings of all tests: set before JAX starts, inherited by the processes that tests start."""

import gc
import os

# Tests compile many tiny programs once: optimising them costs more than it gives (measured: half the compile time).
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.loopback import left_loopback, pytest_unconfigure  # noqa: E402, F401

# This process has eight devices, for whatever is placed on a mesh, and threads enough for their collectives (see
# `stagjax.distributed`); the processes that tests start have one.
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8"
os.environ["NPROC"] = "32"
import jax  # noqa: E402
import pytest  # noqa: E402

jax.devices()
os.environ["XLA_FLAGS"] = FLAGS
del os.environ["NPROC"]


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop a module's compiled programs: each holds memory maps, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()
    gc.collect()
