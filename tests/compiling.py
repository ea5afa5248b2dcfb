"""How tests compile: cheaply, and once what several processes or runs need."""

import os
import shutil
import tempfile

import pytest
from jaxlib import version

# Tests compile many tiny programs once: optimising them costs more than it gives. Gradients of two variants took 3.5 s
# of compiling with the first flag alone (which had halved it), and take 0.7 s with all and the older emitters of
# fusions.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Newer releases have no choice, libtpu's among them, and a program that does not know a flag ends: only processes that
# do not load libtpu after reading it are told.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if version.__version_info__ < (0, 11) else ""


def prepare() -> None:
    """Give this process's environment, and so those of processes that it starts, the flags and a place for programs."""
    os.environ |= {
        "XLA_FLAGS": " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS)).strip(),
        "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="compiled-"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def remove() -> None:
    """Remove what was compiled."""
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def environment(flags: str = "") -> dict[str, str]:
    """Return the environment of a process that compiles for CPUs alone, with more flags for it."""
    return os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EMITTERS} {flags}"}


@pytest.fixture(scope="module")
def compiled_once():
    """Keep what a module's tests compile in this process, as processes do: runs of one config share their programs."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()  # Whether there is one is decided once.
    yield
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
