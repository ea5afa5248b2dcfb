"""Untrusted programs, each run isolated and limited, and whether it came to its end without an exception.

What is protected from a program and what is not is told in docs/evaluation_sandbox.md. Nothing here runs a program
unless another user or own namespaces keep it apart: as root, limits alone keep nobody from anything.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from stagjax.errors import RunFailed, UserError

_MODES = {
    "namespaces": "another user; own process, mount, network, IPC and host name namespaces; own root directory; "
    "system-call filter",
    "user namespaces": "own user, process, mount, network, IPC and host name namespaces; own root directory; "
    "system-call filter",
    "uid": "another user; own root directory; system-call filter (no namespaces here)",
}
_ROOT = str(pathlib.Path(__file__).parent.parent.parent)
_CHILD = f"import sys; sys.path.insert(0, {_ROOT!r}); from stagjax.evaluation import sandbox_child; sys.path.pop(0); "
_GRACE = 120.0
"""Seconds beyond a program's wall time after which its server counts as dead."""

# A program that is where it should be: nobody's files, nobody's network, nobody's processes.
_PROBE = """
import os, socket
assert os.listdir(".") == []
assert not os.path.exists("/etc") and not os.path.exists("/proc/1")
assert os.getppid() == 1 or not {alone}
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except PermissionError:
    pass
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
      wall_seconds: time from its start, for what sleeps or waits: so much more than `cpu_seconds` that what computes
        runs into that limit first, although others use the processor, too.
      cpu_seconds: whole seconds of CPU time of each of its processes; three is what the Hugging Face `code_eval` metric
        allows, in wall time, which on a busy machine is another limit every time.
      memory_bytes: address space of each of its processes.
      processes: at the same time, threads included.
      file_bytes: size of each file.
      disk_bytes: size of all its files; where they are on disk (mode "uid"), all that it ever writes to files.
      open_files: descriptors of each process.
      output_bytes: printed.
    """

    wall_seconds: float = 30.0
    cpu_seconds: int = 3
    memory_bytes: int = 512 << 20
    processes: int = 8
    file_bytes: int = 4 << 20
    disk_bytes: int = 16 << 20
    open_files: int = 64
    output_bytes: int = 1 << 20

    def __post_init__(self):
        """Refuse what no program could run with."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0 or (field.type is int and not isinstance(value, int)):
                kind = "a whole number above 0" if field.type is int else "above 0"
                raise UserError(f"limits.{field.name}={value!r} is not {kind}; the default is {field.default}")


class Outcome(NamedTuple):
    """What became of a program.

    Attributes:
      passed: it ran to its end without an exception.
      reason: "passed"; or, which limit it broke: "time", "memory", "processes", "files", "output"; or how it ended:
        "exception", "exit" (before its end), "signal".
      detail: the exception or the limit, one printable line; the program may have chosen its text.
      seconds: wall time, starting and ending it included.
      output: the first 10,000 bytes of what it printed on standard output and standard error, unchanged: do not show
        it on a terminal.
    """

    passed: bool
    reason: str
    detail: str
    seconds: float
    output: str


class Isolation(NamedTuple):
    """How programs are kept apart on this machine.

    Attributes:
      mode: "namespaces" (as root), "user namespaces" (as anybody else), or "uid" (as root, where the kernel or the
        container forbids namespaces).
      description: for reports.
    """

    mode: str
    description: str


class _Unavailable(Exception):
    """This machine has no such isolation; the message says what is missing."""


@functools.cache
def find_isolation() -> Isolation:
    """Return the best isolation that works here, found by trying; raise `UserError` that says what is missing."""
    if sys.platform != "linux":
        raise UserError(f"programs of a model are executed on Linux only, not on {sys.platform}; run MBPP there")
    missing = []
    for mode in ("namespaces", "uid") if os.geteuid() == 0 else ("user namespaces",):
        try:
            _probe(mode)
        except _Unavailable as error:
            missing.append(f"{mode}: {error}")
        else:
            return Isolation(mode, _MODES[mode])
    remedy = (
        "allow the container setuid and chroot, or namespaces (CAP_SYS_ADMIN)"
        if os.geteuid() == 0
        else "run as root, or allow user namespaces (sysctl user.max_user_namespaces, and on Ubuntu "
        "kernel.apparmor_restrict_unprivileged_userns=0)"
    )
    raise UserError(
        f"programs of a model are executed only in isolation, and there is none ({'; '.join(missing)}); {remedy}"
    )


def run_programs(
    programs: Sequence[str],
    limits: Limits | None = None,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    isolation: Isolation | None = None,
) -> list[Outcome]:
    """Run every program by itself and return what became of each, in order.

    The caller must have the user's explicit consent: this executes text that a model wrote.

    Args:
      programs: texts of Python programs, tests included.
      limits: for each of them.
      on_progress: called in this thread with the number of programs done.
      workers: programs at the same time; by default one for each core that this process may use.
      isolation: by default `find_isolation()`.

    Raises:
      UserError: nothing isolates programs here.
      RunFailed: the sandbox itself broke down.
    """
    isolation = isolation or find_isolation()
    limits = limits or Limits()
    workers = min(workers or len(os.sched_getaffinity(0)), len(programs)) or 1
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Outcome | Exception]] = queue.SimpleQueue()
    for number in range(len(programs)):
        todo.put(number)
    outcomes: list[Outcome | None] = [None] * len(programs)
    try:
        with _servers(isolation.mode, workers) as servers:
            for server in servers:
                threading.Thread(target=_work, args=(server, programs, limits, todo, done), daemon=True).start()
            for count in range(1, len(programs) + 1):
                number, outcome = done.get()
                if isinstance(outcome, Exception):
                    raise RunFailed(f"the sandbox failed at program {number}: {outcome}") from outcome
                outcomes[number] = outcome
                if on_progress:
                    on_progress(count)
    except _Unavailable as error:
        raise RunFailed(f"the sandbox ({isolation.mode}) does not start: {error}") from error
    return outcomes


def _work(
    server: socket.socket, programs: Sequence[str], limits: Limits, todo: queue.SimpleQueue, done: queue.SimpleQueue
) -> None:
    """Have one server run programs until none is left."""
    with contextlib.suppress(queue.Empty), server.makefile("rb") as replies:
        while True:
            number = todo.get_nowait()
            try:
                request = {"program": programs[number], "limits": dataclasses.asdict(limits)}
                server.sendall(json.dumps(request).encode() + b"\n")
                line = replies.readline()
                if not line:
                    raise ConnectionError("its server has ended")
                outcome = Outcome(**json.loads(line))
                if outcome.reason == "sandbox":
                    raise OSError(outcome.detail)
            except Exception as error:  # whatever it is, the other thread waits for it
                done.put((number, error))
                return
            done.put((number, outcome))


@contextlib.contextmanager
def _servers(mode: str, workers: int) -> Iterator[list[socket.socket]]:
    """Start the child process with its servers, one for each worker; end it with all it has started."""
    pairs = [socket.socketpair() for _ in range(workers)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    setting = {
        "mode": mode,
        "users": [None] * workers if mode == "user namespaces" else _unused_users(workers),
        "sockets": [end.fileno() for end in theirs],
        "directory": tempfile.gettempdir(),
    }
    # -E and -I would ignore the seed of hashes, without which a program may pass today and fail tomorrow.
    command = [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _CHILD + "sandbox_child.main()"]
    with contextlib.ExitStack() as stack:
        for end in (*ours, *theirs):
            stack.callback(end.close)
        child = subprocess.Popen(
            [*command, json.dumps(setting)],
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=setting["sockets"],
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        stack.callback(_finish, child, ours)
        for end in theirs:
            end.close()
        first = child.stdout.readline()
        if first != b"ready\n":
            text = (first + child.stdout.read()).decode(errors="replace").strip()
            raise _Unavailable(text.splitlines()[-1] if text else "no word from the child process")
        yield ours


def _finish(child: subprocess.Popen, servers: Sequence[socket.socket]) -> None:
    """Let the servers go: each ends what it runs, then itself, then the child removes the jail."""
    for server in servers:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    try:
        child.wait(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()


def _probe(mode: str) -> None:
    """Raise `_Unavailable` unless a program runs in this mode and is where it should be."""
    isolation = Isolation(mode, _MODES[mode])
    try:
        (outcome,) = run_programs([_PROBE.format(alone=mode != "uid")], workers=1, isolation=isolation)
    except RunFailed as error:
        raise _Unavailable(str(error)) from error
    if not outcome.passed:
        raise _Unavailable(f"a program came too far or not far enough: {outcome.reason} {outcome.detail}".strip())


def _unused_users(workers: int) -> list[tuple[int, int, int]]:
    """Return a program's user, its keeper's and their group for each worker, of which no process exists.

    They are the highest numbers that this user namespace has, which nobody gives to people or services.
    """
    top, group = _highest("/proc/self/uid_map"), _highest("/proc/self/gid_map")
    if top // 2 < max(1000, 2 * workers):
        raise _Unavailable("this user namespace has no users to spare")
    taken = _users_of_processes()
    for _ in range(1000):
        first = random.SystemRandom().randrange(top // 2, top - 2 * workers)
        if taken.isdisjoint(range(first, first + 2 * workers)):
            return [(first + 2 * worker, first + 2 * worker + 1, group) for worker in range(workers)]
    raise _Unavailable(f"every user below {top} has processes")


def _highest(path: str) -> int:
    """Return a high number that a map of user or group numbers contains, within what is a positive 32-bit integer."""
    extents = [[int(word) for word in line.split()] for line in pathlib.Path(path).read_text().splitlines()]
    return min(max(first + length for first, _, length in extents), 1 << 31) - 10


def _users_of_processes() -> set[int]:
    users = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            users.add(process.stat().st_uid)
    return users
