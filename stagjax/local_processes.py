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
from typing import Any

from stagjax.errors import UserError
from stagjax.hosts import secret
from stagjax.hosts.place import Place, as_environment

_VARIABLE, _OWN, _SHARED = "STAGJAX_LOCAL_PROCESS", "own cores", "shared cores"
_GRACE = 5.0
_FAILED_GRACE = 30.0  # in which the others end by themselves, as they do, and say what they lost
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def is_one() -> bool:
    """Return whether `launch` started this process."""
    return _VARIABLE in os.environ


def check(count: int) -> None:
    """Raise `UserError` where there are not as many cores as processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= count <= cores:
        raise UserError(
            f"--local-processes={count} is outside 1..{cores}, the cores of this machine: each gets its own"
        )


def launch(
    count: int,
    arguments: Sequence[str],
    devices: int | None = None,
    grace: float | None = _GRACE,
    own_cores: bool = True,
) -> int:
    """Run `stagjax` with `arguments` in `count` processes until all have ended; return the exit status.

    The first process has this one's terminal; of the others only the errors are shown, if the first had none. Where one
    fails the others are stopped, and so are all of them if this process dies. SIGTERM and Ctrl-C are passed on to the
    first one. They know each other by a secret that only they have.

    Args:
      count: of processes.
      arguments: the command line of each.
      devices: of each process; None leaves it to XLA_FLAGS.
      own_cores: give each its share of the cores, and its network thread what they leave, as measuring asks for; on a
        machine that has other work such a thread waits for long.
      grace: seconds from a signal until whatever still runs is killed; None for as long as it takes to save.
    """
    coordinator = f"127.0.0.1:{_free_port()}"
    die_with_parent = functools.partial(_die_with_parent, ctypes.CDLL(None))
    with contextlib.ExitStack() as stack:
        own_secret = secret.environment(
            pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stagjax-")))
        )
        processes, errors = [], []
        for index in range(count):
            error = stack.enter_context(tempfile.TemporaryFile()) if index else None
            quiet = {"stdout": subprocess.DEVNULL, "stderr": error} if index else {}
            process = subprocess.Popen(
                [sys.executable, "-m", "stagjax", *arguments],
                env=_environment(Place(index, count, coordinator), devices, own_cores) | own_secret,
                preexec_fn=die_with_parent,
                process_group=0,  # not the terminal's: it would tell each of Ctrl-C, and we would once more
                **quiet,
            )
            processes.append(stack.enter_context(process))
            errors.append(error)
        try:
            with _passed_on(processes[0]) as signals:
                return _wait(processes, errors, signals, grace)
        finally:
            _stop(processes)


def has_own_cores() -> bool:
    """Return whether `launch` gave this process cores of its own."""
    return os.environ.get(_VARIABLE) == _OWN


def keep_to_own_cores(place: Place) -> None:
    """Use a part of the machine's cores only, so that a slice has the same means whether the others work or not."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = len(cores) // place.num_processes
    if cores:
        os.sched_setaffinity(0, cores[place.process_id * own : (place.process_id + 1) * own])


def lower_network_threads() -> None:
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


def _environment(place: Place, devices: int | None, own_cores: bool) -> dict[str, str]:
    """Return the environment of a process: its place, the CPU, and how many devices it is to see in it."""
    environment = (
        os.environ | as_environment(place) | {_VARIABLE: _OWN if own_cores else _SHARED, "JAX_PLATFORMS": "cpu"}
    )
    if devices is not None:
        # The last one of two equal flags counts.
        forced = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
    return environment


@contextlib.contextmanager
def _passed_on(first: subprocess.Popen) -> Iterator[list[int]]:
    """Pass SIGTERM and Ctrl-C on to the first process, which tells the others; yield the list of those passed on."""
    passed: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        passed.append(number)
        first.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent(libc: ctypes.CDLL) -> None:
    """Ask Linux to end this process when the one that launched it ends, however that happens."""
    with contextlib.suppress(AttributeError):
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(
    processes: Sequence[subprocess.Popen], errors: Sequence[Any], signals: Sequence[int], grace: float | None
) -> int:
    """Wait until all have ended, or until one has failed and the others had time to say why; return the status."""
    deadline = math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        failed = any(process.poll() for process in processes)
        if (signals and grace is not None) or (failed and not signals):
            deadline = min(deadline, time.monotonic() + (grace or _FAILED_GRACE))
        time.sleep(0.05)
    statuses = [process.poll() or 0 for process in processes]
    speaker = _speaker(statuses)
    if speaker:  # the first one's errors have been seen
        errors[speaker].seek(0)
        os.write(2, errors[speaker].read())
    if signal.SIGINT in signals and grace is not None:
        return 130
    if speaker is None:
        return 0
    return statuses[speaker] if statuses[speaker] > 0 else 128 - statuses[speaker]


def _speaker(statuses: Sequence[int]) -> int | None:
    """Return the index of the process that says best what went wrong: one that failed, else one that was killed."""
    failed = [index for index, status in enumerate(statuses) if status > 0]
    killed = [index for index, status in enumerate(statuses) if status < 0]
    return next(iter(failed + killed), None)


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
