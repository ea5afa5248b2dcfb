"""The process beside the model's in which untrusted programs are started, watched and ended. Standard library only.

It is small and has one thread, so that it can fork; the model's process, with its threads and devices, cannot. It makes
the jail once, then is a server for each worker of `stagjax.evaluation.sandbox`, which takes one program after another.
Per program there are: this server; a holder, whose namespaces end with it; in them a keeper (process 1), which knows
when the program has ended; and the program. Without namespaces holder and keeper are one.
"""

import contextlib
import dataclasses
import gc
import json
import os
import resource
import secrets
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from stagjax.evaluation import sandbox_filter, sandbox_program
from stagjax.evaluation import sandbox_jail as jails
from stagjax.evaluation import sandbox_kernel as kernel

_REPORT_BYTES = 65536
_KEPT_OUTPUT = 10_000
_ENTRIES = 1024
"""Files and directories that a program may have."""


class User(NamedTuple):
    """Whom programs of one server run as: nobody else's numbers.

    Attributes:
      program: user of programs.
      keeper: user of the processes around them, which programs therefore cannot signal.
      group: of both.
    """

    program: int
    keeper: int
    group: int


class _Abandoned(Exception):
    """Nobody waits for the result any more."""


@dataclasses.dataclass
class _Seen:
    """What a program did, as far as it shows outside.

    Attributes:
      stopped: why it was ended from outside, as a reason and its text; None if it ended.
      report: what came through the channel of the token.
      output: what it printed.
      status: the keeper's word, or what kept the program from being run; JSON, a line each.
    """

    stopped: tuple[str, str] | None
    report: bytes
    output: bytes
    status: bytes


class _Server:
    """Runs one program after another for one worker.

    Args:
      control: requests and replies, a line of JSON each; its end is the server's.
      user: None in a user namespace, where there is no other user to become.
      jail: directory to enter for each program, or "/" if this process already is inside.
      home: where the program starts, inside the jail.
      proc: descriptor of /proc.
    """

    def __init__(self, control: socket.socket, user: User | None, jail: str, home: str, proc: int):
        self._control = control
        self._user = user
        self._jail = jail
        self._home = home
        self._proc = proc

    def serve(self) -> None:
        """Answer requests until there are no more."""
        kernel.adopt_orphans()
        kernel.die_with_parent()
        os.environ["HOME"] = os.environ["TMPDIR"] = self._home
        tempfile.tempdir = None
        with self._control.makefile("rb") as requests:
            for line in requests:
                request = json.loads(line)
                self._control.sendall(json.dumps(self._execute(**request)).encode() + b"\n")

    def _execute(self, program: str, limits: dict[str, Any]) -> dict[str, Any]:
        token = secrets.token_hex(32).encode()
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            if self._separate:
                stack.enter_context(self._directory())
            report, theirs = (stack.enter_context(end) for end in socket.socketpair())
            (output, to_output), (status, to_status) = os.pipe(), os.pipe()
            for reader in (output, status):
                stack.callback(os.close, reader)
            holder = os.fork()
            if holder == 0:
                self._hold(program, limits, token, theirs.fileno(), to_output, to_status)
            theirs.close()
            os.close(to_output)
            os.close(to_status)
            with contextlib.suppress(OSError):
                os.setpgid(holder, holder)  # as it does itself, whoever comes first
            stack.callback(self._end, holder)
            ledger = self._ledger(stack, report, limits)
            report.setblocking(False)
            seen = self._watch((report.fileno(), output, status), ledger, began + limits["wall_seconds"], limits)
        return _judge(seen, token, limits) | {
            "seconds": time.monotonic() - began,
            "output": seen.output[:_KEPT_OUTPUT].decode(errors="replace"),
        }

    @property
    def _separate(self) -> bool:
        """Whether programs are told apart by their user alone."""
        return self._jail != "/"

    def _ledger(
        self, stack: contextlib.ExitStack, report: socket.socket, limits: dict[str, Any]
    ) -> sandbox_filter.Ledger | None:
        """Return who counts the disk that a program takes, where no file system of its own bounds it."""
        if not self._separate:
            return None
        ledger = sandbox_filter.Ledger(report, limits["disk_bytes"], limits["file_bytes"], _ENTRIES)
        stack.callback(ledger.close)
        return ledger

    @contextlib.contextmanager
    def _directory(self) -> Iterator[None]:
        """Give a program an empty directory on disk, and remove it whatever it holds then."""
        path = self._jail + self._home
        os.mkdir(path, 0o700)
        os.chown(path, self._user.program, self._user.group)
        try:
            yield
        finally:
            jails.remove(path)

    def _hold(
        self, source: str, limits: dict[str, Any], token: bytes, report: int, output: int, status: int
    ) -> NoReturn:
        """Be the holder, then the keeper, then the program, each the parent of the next."""
        try:
            os.setpgid(0, 0)
            kernel.die_with_parent()
            os.dup2(output, 1)
            os.dup2(output, 2)
            hidden = os.dup2(report, 200 + secrets.randbelow(800))
            if self._separate:
                os.chroot(self._jail)
            else:
                self._enter_namespaces(limits["disk_bytes"])
            os.chdir(self._home)
            program = os.fork()
            if program == 0:
                self._offer_to_memory_killer()
                ids = self._user and (self._user.program, self._user.group)
                sandbox_program.run(source, limits, token, hidden, ids, counted=self._separate)
            self._keep(program, status)
        except BaseException as error:
            os.write(status, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        finally:
            os._exit(1)

    def _enter_namespaces(self, disk_bytes: int) -> None:
        """Become the first process of new namespaces, with a file system of memory to write to; all end with it."""
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(kernel.NEW_PROCESSES | kernel.NEW_MOUNTS | (0 if self._user else kernel.NEW_USERS))
        if self._user:
            uid, gid = self._user.program, self._user.group
        else:
            kernel.map_to_self(uid, gid, self._proc)
        kernel.mount_memory(jails.HOME, f"size={disk_bytes},nr_inodes={_ENTRIES},mode=700,uid={uid},gid={gid}")
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        kernel.die_with_parent()

    def _offer_to_memory_killer(self) -> None:
        """Let the kernel end the program before anything else when memory runs out."""
        file = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=self._proc)
        os.write(file, b"1000")
        os.close(file)

    def _keep(self, program: int, status: int) -> NoReturn:
        """Wait for the program, without privileges, and tell how it ended."""
        kernel.drop_privileges(*((self._user.keeper, self._user.group) if self._user else (None, None)))
        kernel.die_with_parent()
        ended = None
        while ended != program:
            ended, code, usage = os.wait4(-1, 0)
        os.write(status, json.dumps({"status": code, "cpu": usage.ru_utime + usage.ru_stime}).encode() + b"\n")
        os._exit(0)

    def _watch(
        self, readers: tuple[int, ...], ledger: sandbox_filter.Ledger | None, deadline: float, limits: dict[str, Any]
    ) -> _Seen:
        """Read what comes until the program has ended or broken a limit."""
        report, output, status = readers
        held = {reader: bytearray() for reader in readers}
        counter = ledger and ledger.listener
        poll = select.poll()
        for reader in (*readers, self._control, *([] if counter is None else [counter])):
            poll.register(reader, select.POLLIN)
        stopped, ended = None, False
        while not ended and not stopped:
            left = deadline - time.monotonic()
            if left <= 0:
                stopped = "time", f"{limits['wall_seconds']:g} s of wall time"
                break
            for reader, events in poll.poll(1000 * left + 1):
                if reader == self._control.fileno():
                    raise _Abandoned
                if reader == counter:
                    if events & select.POLLIN:
                        ledger.answer()
                    else:
                        poll.unregister(reader)  # no process is left that could ask
                    continue
                try:
                    chunk = os.read(reader, 65536)
                except BlockingIOError:  # urgent data alone is none
                    continue
                held[reader] += chunk
                if not chunk:
                    poll.unregister(reader)
                    ended = ended or reader == status
            if len(held[output]) > limits["output_bytes"] or len(held[report]) > _REPORT_BYTES:
                stopped = "output", f"more than {limits['output_bytes']} bytes printed"
        if ended and not stopped:
            for reader in (report, output):
                held[reader] += _rest(reader)
        return _Seen(stopped, bytes(held[report]), bytes(held[output]), bytes(held[status]))

    def _end(self, holder: int) -> None:
        """End all that a program has started; return when no process is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder, signal.SIGKILL)
        while True:
            if self._separate:
                kill_all_of(self._user)
            with contextlib.suppress(ChildProcessError):
                # Orphans come to this process. With the holder its namespaces end, and with them their processes.
                while os.waitpid(-1, os.WNOHANG if self._separate else 0)[0]:
                    pass
                time.sleep(0.001)
                continue
            return


def kill_all_of(user: User) -> None:
    """End every process of a program's user; none can fork past it, and none can end the process that does it."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setgroups([])
            os.setresgid(user.group, user.group, user.group)
            # Its real user is not the program's, whose processes may therefore not signal it.
            os.setresuid(user.keeper, user.program, user.keeper)
            if os.getresuid() == (user.keeper, user.program, user.keeper) and min(user) > 0:
                os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _rest(reader: int) -> bytes:
    """Return what a pipe holds now; survivors of the program may keep it open."""
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(reader, _REPORT_BYTES)
    return b""


def _judge(seen: _Seen, token: bytes, limits: dict[str, Any]) -> dict[str, Any]:
    """Return whether a program passed; the token alone proves it, all else only explains."""
    if seen.stopped:
        return _failed(*seen.stopped)
    # The first word counts: where a program's process could not be made ready, its keeper adds how it ended.
    told = json.loads(seen.status.split(b"\n")[0] or '{"error": "the keeper was killed"}')
    if "error" in told:
        return {"passed": False, "reason": "sandbox", "detail": told["error"]}
    exit_code = os.waitstatus_to_exitcode(told["status"])
    if exit_code == 0 and secrets.compare_digest(seen.report, token):
        return {"passed": True, "reason": "passed", "detail": ""}
    out_of_time = exit_code == -signal.SIGKILL and told["cpu"] >= limits["cpu_seconds"]
    if exit_code == -signal.SIGXCPU or out_of_time:
        return _failed("time", f"{limits['cpu_seconds']:g} s of CPU time")
    if exit_code < 0:
        return _failed("signal", signal.Signals(-exit_code).name if -exit_code < 32 else f"signal {-exit_code}")
    try:
        report = json.loads(seen.report)
        return _failed(str(report["reason"])[:20], str(report["detail"])[:500])
    except (ValueError, TypeError, KeyError, RecursionError):  # nothing, or of the program's making
        return _failed("exit", f"exit status {exit_code} before the program's end")


def _failed(reason: str, detail: str) -> dict[str, Any]:
    """Return a failure; what a program says of itself must neither pass for anything else nor harm a terminal."""
    known = ("time", "memory", "processes", "files", "output", "exit", "signal", "exception")
    line = "".join(letter if letter.isprintable() else " " for letter in detail)
    return {"passed": False, "reason": reason if reason in known else "exception", "detail": line}


def _isolate(mode: str, directory: str, proc: int) -> str:
    """Enter what all programs have in common; return the jail's path."""
    if mode == "uid":
        return jails.build(directory)
    uid, gid = os.getuid(), os.getgid()
    flags = kernel.NEW_MOUNTS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_SYSTEM_NAME
    kernel.unshare(flags | (kernel.NEW_USERS if mode == "user namespaces" else 0))
    if mode == "user namespaces":
        kernel.map_to_self(uid, gid, proc)
    return jails.enter()


def main() -> None:
    """Serve as `sys.argv[1]` (JSON) says: mode, users, sockets, directory; print "ready" or what is missing."""
    setting = json.loads(sys.argv[1])
    users = [user and User(*user) for user in setting["users"]]
    controls = [socket.socket(fileno=descriptor) for descriptor in setting["sockets"]]
    if os.uname().machine not in sandbox_filter.MACHINES:
        sys.exit(f"the system-call filter knows {' and '.join(sandbox_filter.MACHINES)}, not {os.uname().machine}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, files[1]) if files[1] > 0 else 1024, files[1]))
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", LANG="C.UTF-8")
    jails.load_modules()
    gc.freeze()  # collecting would copy, in every program's process, what it shares with this one
    try:
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        jail = _isolate(setting["mode"], setting["directory"], proc)
    except OSError as error:
        sys.exit(str(error) if error.filename or not error.strerror else error.strerror)
    servers = []
    for number, (control, user) in enumerate(zip(controls, users, strict=True)):
        servers.append(os.fork())
        if servers[-1] == 0:
            for other in controls:
                if other is not control:
                    other.close()
            home = jails.HOME if jail == "/" else f"{jails.HOME}/{number}"
            _serve(_Server(control, user, jail, home, proc))
    for control in controls:
        control.close()
    print("ready", flush=True)
    _wait(servers)
    if jail != "/":
        for user in users:
            kill_all_of(user)
        jails.remove(jail)


def _serve(server: _Server) -> NoReturn:
    status = 1
    try:
        server.serve()
        status = 0
    except (_Abandoned, ConnectionError):
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(status)


def _wait(servers: list[int]) -> None:
    for server in servers:
        os.waitpid(server, 0)
