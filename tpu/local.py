"""Workers as processes of this machine: the launch path of a pod without a pod."""

import contextlib
import ctypes
import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from stagjax.errors import UserError
from stagjax.hosts import secret
from tpu.restarts import WorkerState

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class LocalTarget:
    """Processes that find each other by STAGJAX_COORDINATOR, STAGJAX_NUM_PROCESSES and STAGJAX_PROCESS_ID.

    They know each other by a secret of their attempt, in a file that STAGJAX_SECRET_FILE names.

    Args:
      command: what each runs; a leading `stagjax` is the one of this Python.
      processes: how many.
      logs: directory of their output, one file each.
      devices: forced CPU devices of each process; 0 leaves them as they are.
      environment: further variables.
      grace: seconds that a process has to save after a signal, before it is killed.

    Raises:
      UserError: no processes, or a log directory that cannot be made.
    """

    poll_seconds = 0.1
    detached = False

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        logs: pathlib.Path,
        devices: int = 0,
        environment: Mapping[str, str] | None = None,
        grace: float = 60.0,
    ):
        if processes < 1:
            raise UserError(f"--processes={processes}: a run has at least one; use 1 or more")
        self.command = [sys.executable, "-m", "stagjax", *command[1:]] if command[0] == "stagjax" else list(command)
        self.num_processes, self.logs, self.grace = processes, logs, grace
        self.environment = dict(environment or {})
        if devices:
            flags = os.environ.get("XLA_FLAGS", "")
            self.environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
            self.environment.setdefault("JAX_PLATFORMS", "cpu")
        self._workers: list[_Worker] = []
        self._private: tempfile.TemporaryDirectory | None = None

    def prepare(self) -> None:
        """Make the directory of the logs."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--logs={self.logs} cannot be made: {error.strerror}; give another directory") from error

    def running(self) -> bool:
        """Return False: processes of another launcher are none of ours."""
        return False

    def environments(self, coordinator: str) -> list[dict[str, str]]:
        """Return what each process is told, beside this one's own environment, of which a dry run may show all."""
        told = {"STAGJAX_COORDINATOR": coordinator, "STAGJAX_NUM_PROCESSES": str(self.num_processes)}
        told[secret.VARIABLE] = "FILE"
        return [self.environment | told | {"STAGJAX_PROCESS_ID": str(index)} for index in range(self.num_processes)]

    def log(self, index: int) -> pathlib.Path:
        """Return the file of a worker's output; attempts follow each other in it."""
        return self.logs / f"worker-{index}.log"

    def start(self, attempt: int) -> None:
        """Start every process, with a coordinator's port and a secret of this attempt alone."""
        self._workers = []
        if self._private:
            self._private.cleanup()
        self._private = tempfile.TemporaryDirectory(prefix="stagjax-")
        own_secret = secret.environment(pathlib.Path(self._private.name))
        for index, told in enumerate(self.environments(f"127.0.0.1:{_free_port()}")):
            with self.log(index).open("ab") as log:
                log.write(f"--- attempt {attempt + 1}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
                log.flush()
                self._workers.append(
                    _Worker(f"worker {index}", self.command, os.environ | told | own_secret, self.log(index), log)
                )

    def states(self) -> Sequence[WorkerState]:
        """Return every process's state."""
        return [worker.state for worker in self._workers]

    def stop(self, number: int) -> None:
        """Send a signal to all that run, and kill the groups of those that are there after the grace time."""
        for worker in self._workers:
            worker.signal(number)
        until = time.monotonic() + self.grace
        while any(worker.state.status is None for worker in self._workers) and time.monotonic() < until:
            time.sleep(0.05)
        for worker in self._workers:
            worker.kill()

    def gather(self, attempt: int) -> str:
        """Return where the logs are: they are written here."""
        return str(self.log(0)) if self.num_processes == 1 else f"{self.log(0)} to {self.log(self.num_processes - 1)}"


class _Worker:
    """A process in a group of its own, and a thread that notes when it ends.

    Ctrl-C on a terminal goes to the launcher alone, which passes it on once; and the order in which several processes
    end is known, however close they are.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path, output: BinaryIO
    ):
        self.state, self._log = WorkerState(name), log
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=functools.partial(_die_with_parent, ctypes.CDLL(None)),
            )
        except OSError as error:
            raise UserError(f"{command[0]!r} cannot be started: {error.strerror}; correct what follows --") from error
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        if self.state.status is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        """Kill what is left of its group, children of it too."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()

    def _wait(self) -> None:
        code = self._process.wait()
        ended = time.time()
        self.state = WorkerState(self.state.name, code if code >= 0 else 128 - code, ended, said=_last_line(self._log))


def _last_line(log: pathlib.Path) -> str:
    """Return the end of a log, which may be long; "" where it is gone."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _die_with_parent(libc: ctypes.CDLL) -> None:
    """Ask Linux to kill this process when the launcher ends, however that happens."""
    with contextlib.suppress(AttributeError):
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _free_port() -> int:
    """Return a port of which the next is free too, for a service beside the coordinator."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
