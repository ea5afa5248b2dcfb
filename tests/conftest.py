"""Settings of all tests: set before JAX starts, inherited by the processes that tests start."""

import gc
import os

from jaxlib import version

# Tests compile many tiny programs once: optimising them costs more than it gives. Gradients of two variants took 3.5 s
# of compiling with the first flag alone (which had halved it), and take 0.7 s with all and the older
# emitters of fusions.
FLAGS = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
).strip()
# Newer releases have no choice, libtpu's among them: a program that does not know a flag ends, so that only this
# process is told.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if version.__version_info__ < (0, 11) else ""
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.loopback import left_loopback, pytest_unconfigure  # noqa: E402, F401

# This process has eight devices, for whatever is placed on a mesh, and threads enough for their collectives (see
# `stagjax.distributed`); the processes that tests start have one.
os.environ["XLA_FLAGS"] = f"{FLAGS} {EMITTERS} --xla_force_host_platform_device_count=8"
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
