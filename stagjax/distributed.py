"""Start-up of a process that computes: its place among others, where compiled programs are kept, what stays quiet."""

import importlib.metadata
import logging
import os
import pathlib
import re
import warnings

import jax
from jax.experimental.multihost_utils import sync_global_devices

from stagjax import libtpu, local_processes


def start_up() -> None:
    """Prepare JAX for a command; call it before the first computation.

    Where this process is one of several (of `local_processes.launch`, on the hosts of a TPU pod, or started by SLURM or
    Open MPI) it joins them first. Compiled programs are kept in `JAX_COMPILATION_CACHE_DIR`, by default in the user's
    cache directory, so that only the first run of a program on a machine waits for the compiler.
    """
    _give_forced_devices_threads()
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "stagjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A cache that cannot be written costs time, not results; JAX warns of it once for every program.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
    logging.getLogger("jax._src.compiler").setLevel(logging.ERROR)
    if process := local_processes.current():
        local_processes.join(process)
    else:
        _join_cluster()
    if libtpu.is_installed() and not libtpu.has_tpus():
        _do_without_tpus()


def barrier(name: str) -> None:
    """Wait until all processes have come here; nothing is done for a single one."""
    if jax.process_count() > 1:
        sync_global_devices(name)


def takes_part(mesh: jax.sharding.Mesh) -> bool:
    """Return whether this process holds devices of a mesh: only then may it run programs on it."""
    return any(device.process_index == jax.process_index() for device in mesh.devices.flat)


def _do_without_tpus() -> None:
    """Start JAX where libtpu is installed and has nothing to find.

    JAX would try it first. It says at length that there is no TPU; and its profiler, once it is loaded, ends any
    process that is profiled where libtpu is newer than jaxlib (seen with jaxlib 0.10.2 and libtpu 0.0.52).
    """
    if jax.config.jax_platforms is None and not importlib.metadata.entry_points(group="jax_plugins"):
        jax.config.update("jax_platforms", "cpu")
        return
    with libtpu.quiet():
        jax.devices()


def _give_forced_devices_threads() -> None:
    """Let XLA:CPU have threads for the collectives of all forced devices, before it makes its pool.

    A device that waits in a collective holds a thread. The pool has one for each device, so that devices with two
    collectives under way at once, as in a pipeline, take all of them and wait for each other forever.
    """
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if forced and int(forced[1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(forced[1])))


def _join_cluster() -> None:
    """Join the other hosts of a TPU slice, or the other tasks of a SLURM or Open MPI job; JAX finds them by itself."""
    started_with_others = any(int(os.environ.get(name, 1)) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    if not started_with_others and not libtpu.has_tpus():
        return
    try:
        jax.distributed.initialize()
    except ValueError:
        # JAX knows of no cluster: TPUs of this machine alone.
        if started_with_others:
            raise
