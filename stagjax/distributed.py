"""Start-up of a process that computes: its place among others, where compiled programs are kept, what stays quiet."""

import collections
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental.multihost_utils import sync_global_devices

from stagjax import libtpu, local_processes
from stagjax.errors import UserError
from stagjax.hosts import joining
from stagjax.hosts.facts import Facts, ranges, versions
from stagjax.hosts.hub import SILENCE_SECONDS
from stagjax.hosts.link import Link
from stagjax.hosts.place import Place, told

_JAX_SECONDS = 60  # within which JAX connects processes that have met already
# JAX's processes give a sign of life every half of this, and one that has not for all of it makes JAX abort the others,
# with a page of its own: of a process frozen just before its sign half is left (measured). Ours is to notice it first.
_JAX_SILENCE_SECONDS = int(5 * SILENCE_SECONDS)

_link: Link | None = None


def start_up(place: Place | None = None, facts: Facts | None = None, timeout: float = 300.0) -> None:
    """Prepare JAX for a command; call it before the first computation.

    Where this process is one of several (as it is told, or on the hosts of a TPU pod, or started by SLURM or Open MPI)
    it joins them first, once all are there and alike. Compiled programs are kept in `JAX_COMPILATION_CACHE_DIR`, by
    default in the user's cache directory, so that only the first run of a program on a machine waits for the compiler.

    Args:
      place: of this process; None for what the environment says.
      facts: besides versions and devices, what must be the same in all processes.
      timeout: seconds to wait for the other processes.

    Raises:
      UserError: the processes do not come together, or differ.
      RunFailed: process 0 failed while they came together.
    """
    _give_forced_devices_threads()
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "stagjax" / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A cache that cannot be written costs time, not results; JAX warns of it once for every program.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
    logging.getLogger("jax._src.compiler").setLevel(logging.ERROR)
    place = place or told() or _detected()
    if place is not None and place.num_processes > 1:
        _join(place, dict(facts or {}), timeout)
    if libtpu.is_installed() and not libtpu.has_tpus():
        _do_without_tpus()


def barrier(name: str) -> None:
    """Wait until all processes have come here; nothing is done for a single one."""
    if jax.process_count() > 1:
        sync_global_devices(name)


def gather(topic: str, value: Any) -> list[Any]:
    """Return the values (plain data, ready for JSON) that the processes give, in their order; all call it alike."""
    return [value] if _link is None else _link.gather(topic, value)


def agree(topic: str, facts: Mapping[str, str]) -> None:
    """Raise `UserError` in all processes where they give different facts, naming those and who gives what."""
    if _link is not None:
        _link.agree(topic, facts)


def process_name(process: int) -> str:
    """Return e.g. "process 1 on host-b"."""
    return f"process {process}" if _link is None else _link.name(process)


def stop_here(signal: int | None) -> int | None:
    """Ask before each step whether to stop; all processes of a run hear the same, whichever has caught a signal.

    Args:
      signal: that this process has caught, if any.

    Returns:
      The signal for which to stop now, or None.
    """
    return signal if _link is None else _link.stop_here(signal)


def set_last_words(tell: Callable[[], str]) -> None:
    """Set what is asked, from another thread, for what is left of the run when a process is lost."""
    if _link is not None:
        _link.last_words = tell


def part() -> None:
    """Say that this process has done all that others wait for; process 0 waits for the others to say so, too."""
    if _link is not None:
        _link.part()


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
    forced = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if forced and int(forced[-1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(forced[-1])))


def _join(place: Place, facts: dict[str, str], timeout: float) -> None:
    """Meet the other processes, make JAX see their devices as well as ours, and see that all have as many."""
    global _link
    print_line = lambda text: print(text, file=sys.stderr, flush=True)
    _link = joining.join(place, versions() | facts, timeout, print_line)
    own_cores = local_processes.has_own_cores()
    if own_cores:
        local_processes.keep_to_own_cores(place)
    # Ours ends a process that another's loss leaves waiting, and tells SIGTERM as it tells Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    sys.excepthook = _fail_unexpectedly
    bind = place.coordinator if place.is_loopback else None
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            coordinator_bind_address=bind,
            initialization_timeout=_JAX_SECONDS,
            heartbeat_timeout_seconds=_JAX_SILENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"JAX could not join the processes at --coordinator={place.coordinator}: {str(error).splitlines()[0]}"
        ) from error
    if own_cores:
        local_processes.lower_network_threads()
    counts = collections.Counter(device.process_index for device in jax.devices())
    _check_devices([counts[process] for process in range(place.num_processes)])
    if place.process_id == 0:
        print_line(_introduction(_link.hosts, counts[0], facts))


def _introduction(hosts: Sequence[str], devices: int, facts: Facts) -> str:
    """Return a line that says who met, with what; `facts` are told by a hash, which is the same for the same line."""
    same = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    with_what = [f"{name} {version}" for name, version in versions().items() if version != "missing"]
    machines = len(set(hosts))
    return (
        f"{len(hosts)} processes on {machines} {'host' if machines == 1 else 'hosts'}, {devices} devices each; "
        f"config and options {same}; {', '.join(with_what)}"
    )


def _check_devices(counts: list[int]) -> None:
    """Raise `UserError` where not all processes have the same number of devices; all know of all, so all raise."""
    if len(set(counts)) > 1:
        where = {count: [n for n, own in enumerate(counts) if own == count] for count in sorted(set(counts))}
        said = [f"{count} (process {ranges(processes)})" for count, processes in where.items()]
        raise UserError(f"the processes have different numbers of devices: {', '.join(said)}; use hosts of one kind")


def _detected() -> Place | None:
    """Return the place that a TPU slice, SLURM or Open MPI gives this process; JAX knows how to ask them."""
    started_with_others = any(int(os.environ.get(name, 1)) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    if not started_with_others and not libtpu.has_tpus():
        return None
    coordinator, count, index = _ask_jax()
    if None in (coordinator, count, index):
        # TPUs of this machine alone.
        if started_with_others:
            raise UserError(
                "this process was started with others, but JAX does not find out who they are; tell each its place by "
                "--coordinator, --num-processes and --process-id"
            )
        return None
    return Place(index, count, coordinator)


def _ask_jax() -> tuple[str | None, int | None, int | None]:
    """Return coordinator, number of processes and process id that `jax.distributed.initialize()` would find out.

    There is no public way to ask without joining at once, and so none to look first who is there.
    """
    clusters = importlib.import_module("jax._src.clusters")
    nothing = (None,) * 5
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(*nothing, _JAX_SECONDS)[:3]


def leave(status: int, error: BaseException | str, say: Any) -> None:
    """End a failed command: the other processes of the run end with it, each with a line that says why.

    Args:
      status: of the exit.
      error: what the others are told.
      say: prints it here; not called where it only follows from another process's end, of which a line tells.
    """
    if _link is None:
        say()
    else:
        _link.fail(status, str(error), say)


def _fail_unexpectedly(*error: Any) -> None:
    leave(1, f"{error[0].__name__}: {error[1]}", lambda: sys.__excepthook__(*error))
