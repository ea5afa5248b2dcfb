"""One untrusted program in the process made for it: limited, without privileges, run, reported. Standard library only.

What is reported proves a pass only with a token. The program does not know it, but shares the process with it: whoever
looks for it in the interpreter's frames or memory can find it (see docs/evaluation_sandbox.md).
"""

import errno
import json
import os
import resource
import socket
import sys
import types
from typing import Any, NoReturn

from stagjax.evaluation import sandbox_filter
from stagjax.evaluation import sandbox_kernel as kernel

_DETAIL = 500
_OTHER_PROCESSES = 2  # that a user namespace holds besides the program


def run(
    source: str, limits: dict[str, Any], token: bytes, report: int, user: tuple[int, int] | None, counted: bool
) -> NoReturn:
    """Run a program to its end and send to `report`: `token` if it came there, else JSON that says what stopped it.

    Args:
      source: the program's text; its globals are empty at first, as in the Hugging Face `code_eval` metric.
      limits: as `stagjax.evaluation.sandbox.Limits` has them.
      token: what proves that the program's end was reached.
      report: descriptor of a stream socket, on which sending takes no disk that might be used up; 0, 1 and 2 are
        already the program's, others are closed.
      user: user and group to run as; None to stay the same, in a user namespace of its own.
      counted: whether a ledger at the other end of `report` counts the disk that the program takes.

    Raises:
      OSError: the process could not be limited; the program has not run.
    """
    _limit(limits, limits["processes"] + (0 if user else _OTHER_PROCESSES))
    kernel.drop_privileges(*(user or (None, None)))
    kernel.die_with_parent()
    channel = socket.socket(fileno=report)
    listener = sandbox_filter.install(counted)
    if counted:
        sandbox_filter.hand_over(channel, listener)
    _forget(report)
    # What is looked up later may by then be the program's: names of modules and built-ins, this process's very number.
    own, process, send, leave, anything = os.getpid(), os.getpid, channel.send, os._exit, BaseException
    try:
        try:
            exec(compile(source, "<program>", "exec", dont_inherit=True, optimize=0), {})
            message = token
        except anything as error:
            message = _describe(error)
        if process() == own:  # and not a copy that the program made of itself
            send(message)
            sys.stdout.flush()
    finally:
        leave(0)


def _limit(limits: dict[str, Any], processes: int) -> None:
    cpu = limits["cpu_seconds"]
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # a handler of SIGXCPU gains one second
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 64, 64),
    ):
        resource.setrlimit(what, (soft, hard))


def _forget(report: int) -> None:
    """Leave nothing of the sandbox where a program comes across it: descriptors, modules, arguments."""
    os.closerange(3, report)
    os.closerange(report + 1, 1 << 20)  # one system call
    for name in [name for name in sys.modules if name.split(".")[0] == "stagjax"]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = [""]
    sys.orig_argv[:] = [""]


def _describe(error: BaseException) -> bytes:
    """Return what stopped the program; whatever it raised may itself raise when asked for its text."""
    try:
        reason = _reason(error)
        detail = f"{type(error).__name__}: {error}"[:_DETAIL]
        return json.dumps({"reason": reason, "detail": detail.removesuffix(": ")}).encode()
    except BaseException:
        return b'{"reason": "exception", "detail": "an exception that has no text"}'


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, SystemExit):
        return "exit"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "processes"
    if isinstance(error, OSError):
        return {errno.EAGAIN: "processes", errno.EFBIG: "files", errno.ENOSPC: "files", errno.EMFILE: "files"}.get(
            error.errno, "exception"
        )
    return "exception"
