"""Several processes on this machine, each with cores of its own, that JAX sees as the hosts of one cluster.

A device of another process is reached through the loopback network, as one of another host is through a real one: what
runs on slices runs on slices that share nothing.
"""

import contextlib
import ctypes
import functools
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stagjax.errors import UserError

_VARIABLE = "STAGJAX_LOCAL_PROCESS"
_GRACE = 5.0
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class LocalProcess(NamedTuple):
    """Which of the processes this one is."""

    index: int
    count: int
    coordinator: str


def current() -> LocalProcess | None:
    """Return what `launch` told this process; None if it was not started by it."""
    told = os.environ.get(_VARIABLE)
    if told is None:
        return None
    index, count, coordinator = told.split(",")
    return LocalProcess(int(index), int(count), coordinator)


def check(count: int) -> None:
    """Raise `UserError` where there are not as many cores as processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= count <= cores:
        raise UserError(
            f"--local-processes={count} is outside 1..{cores}, the cores of this machine: each gets its own"
        )


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `stagjax` with `arguments` in `count` processes until all have ended; return the exit status.

    The first process has this one's terminal; of the others only the errors are shown, if the first had none. Where one
    fails the others are stopped, and so are all of them if this process dies.
    """
    check(count)
    coordinator = f"127.0.0.1:{_free_port()}"
    die_with_parent = functools.partial(_die_with_parent, ctypes.CDLL(None))
    with contextlib.ExitStack() as stack:
        processes, errors = [], []
        for index in range(count):
            environment = os.environ | {_VARIABLE: f"{index},{count},{coordinator}", "JAX_PLATFORMS": "cpu"}
            error = stack.enter_context(tempfile.TemporaryFile()) if index else None
            quiet = {"stdout": subprocess.DEVNULL, "stderr": error} if index else {}
            command = [sys.executable, "-m", "stagjax", *arguments]
            process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent, **quiet)
            processes.append(stack.enter_context(process))
            errors.append(error)
        try:
            return _wait(processes, errors)
        finally:
            _stop(processes)


def join(process: LocalProcess) -> None:
    """Make this process one of the cluster; call it before the first computation.

    It keeps to its own cores, so that a slice has the same means whether the others work or not.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = len(cores) // process.count
        os.sched_setaffinity(0, cores[process.index * own : (process.index + 1) * own])
    sys.excepthook = _fail
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(process.coordinator, process.count, process.index, initialization_timeout=60)
    _lower_network_threads()


def leave(status: int) -> None:
    """End a process that failed at once: on its way out JAX would wait for the others, and they for it."""
    if current() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _lower_network_threads() -> None:
    """Let the network thread of the collectives run only when nothing computes on its core.

    Gloo's thread polls without a pause from the arrival of a message until somebody asks for it. On a core that it
    shares with the computation whose end it awaits it takes half of it, so that whoever is late gets later: a decode
    step of two slices of a core each took 18 ms instead of 8 to 10.
    """
    from jax.experimental.multihost_utils import sync_global_devices

    with _silence_stdout():
        sync_global_devices("local processes")
    for thread in _unnamed_threads():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def _unnamed_threads() -> list[int]:
    """Return the threads that have the process's own name, as gloo's has; the pool that runs programs has another."""
    named = lambda thread: pathlib.Path(f"/proc/self/task/{thread}/comm").read_text()
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        return [thread for thread in threads if thread != os.getpid() and named(thread) == named(os.getpid())]
    except FileNotFoundError:
        return []  # not Linux: nothing to be done


def _fail(*error: Any) -> None:
    sys.__excepthook__(*error)
    leave(1)


def _die_with_parent(libc: ctypes.CDLL) -> None:
    """Ask Linux to end this process when the one that launched it ends, however that happens."""
    with contextlib.suppress(AttributeError):
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(processes: Sequence[subprocess.Popen], errors: Sequence[Any]) -> int:
    """Wait until all have ended, or until one has failed and the others had time to say why; return the status."""
    failed, deadline, interrupted = None, math.inf, False
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        try:
            failed = failed or next((process for process in processes if process.poll()), None)
            if failed is not None or interrupted:
                deadline = min(deadline, time.monotonic() + _GRACE)
            time.sleep(0.05)
        except KeyboardInterrupt:  # a terminal has told the others too
            interrupted = True
    failed = failed or next((process for process in processes if process.poll()), None)
    if interrupted:
        return 130
    if failed is None:
        return 0
    if not processes[0].poll():
        error = errors[processes.index(failed)]
        error.seek(0)
        os.write(2, error.read())
    return failed.returncode if failed.returncode > 0 else 128 - failed.returncode


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """End what is still running. Not by SIGTERM, which JAX takes for a notice of preemption."""
    for process in processes:
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _silence_stdout() -> Iterator[None]:
    """Hold back what gloo writes to standard output when it connects."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
