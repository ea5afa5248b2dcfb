"""Settings of all tests: set before JAX starts, inherited by the processes that tests start."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests import compiling, loopback
from tests.compiling import compiled_once  # noqa: F401
from tests.loopback import left_loopback  # noqa: F401

compiling.prepare()
# This process has eight devices, for whatever is placed on a mesh, and threads enough for their collectives (see
# `stagjax.distributed`); the processes that tests start have one.
flags = os.environ["XLA_FLAGS"]
os.environ["XLA_FLAGS"] = f"{flags} {compiling.EMITTERS} --xla_force_host_platform_device_count=8"
os.environ["NPROC"] = "32"
import jax  # noqa: E402
import pytest  # noqa: E402

jax.devices()
os.environ["XLA_FLAGS"] = flags
del os.environ["NPROC"]
# Most programs of this process are compiled once: keeping them would cost, and hide what compiling them says.
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop a module's compiled programs: each holds memory maps, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_unconfigure():
    compiling.remove()
    loopback.remove()
