"""Programs for the sandbox: honest ones, and ones that try to pass without passing, to do harm, or to stay.

Whoever sleeps does so for longer than any limit on time: an outcome other than "time" shows that nobody waited.
"""

import textwrap

_OPENED = """
import contextlib, os
def is_open(descriptor):
    try:
        return bool(os.fstat(descriptor))
    except OSError:
        return False
opened = [number for number in range(3, 2000) if is_open(number)]
"""


def _text(text):
    """Return a program without indentation; one that speaks of what is opened has found it."""
    return _OPENED * ("opened" in text) + textwrap.dedent(text)


def _programs(**texts):
    return {name: _text(text) for name, text in texts.items()}


HONEST = _programs(
    benchmark="""
        import math, re, collections, heapq, itertools, sys
        from typing import List
        def smallest(numbers: List[int], n: int) -> List[int]:
            return heapq.nsmallest(n, numbers)
        assert smallest([3, 1, 2], 2) == [1, 2]
        assert re.findall("[a-z]+", "ab1c") == ["ab", "c"] and math.isqrt(10) == 3
    """,
    # The metric that is quoted executes programs in empty globals, whose name is that of the built-ins.
    script="""
        assert __name__ == "builtins"
        if __name__ == "__main__":
            raise SystemExit("nobody calls this")
    """,
    library="""
        import asyncio, bisect, dataclasses, decimal, fractions, functools, hashlib, random, sqlite3, string, zlib
        import tempfile, threading
        @dataclasses.dataclass
        class Point:
            x: int
        assert Point(1) == Point(1) and hashlib.sha256(b"").hexdigest().startswith("e3b0")
        assert asyncio.run(asyncio.sleep(0, "done")) == "done"
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 1000)
        thread = threading.Thread(target=print, args=("said by a thread",))
        thread.start(), thread.join()
    """,
    surroundings="""
        import os, sys
        assert os.listdir() == [] and set(os.environ) == {"PATH", "LANG", "HOME", "TMPDIR"}, os.environ
        assert all(map(is_open, range(3))) and len(opened) == 1, opened
        assert not [name for name in sys.modules if "stagjax" in name] and sys.argv == [""]
        assert os.getuid() != 0 and os.getgroups() in ([], [os.getgid()])
    """,
    limits="""
        from resource import *
        assert getrlimit(RLIMIT_CPU) == (60, 61) and getrlimit(RLIMIT_AS) == (256 << 20,) * 2
        assert getrlimit(RLIMIT_FSIZE) == (1 << 20,) * 2 and getrlimit(RLIMIT_NOFILE) == (32, 32)
        assert getrlimit(RLIMIT_CORE) == (0, 0) and getrlimit(RLIMIT_NPROC)[1] < 10
    """,
    # More calls than would fit on the disk: what is printed takes none.
    prints_often="""
        import sys
        for number in range(2000):
            print(number, file=sys.stderr)
    """,
    lives_with_a_full_disk="""
        import os
        try:
            while True:
                open(str(len(os.listdir())), "wb").write(b"x" * 700_000)
        except OSError as error:
            print(error.strerror)
        assert open("0", "rb").read() == b"x" * 700_000
    """,
    leaves_a_daemon="""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
    """,
    leaves_a_thread="""
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start()
    """,
)

COUNTS_PROCESSES = textwrap.dedent("""
    import os, time
    count = 0
    for _ in range(40):
        try:
            if os.fork() == 0:
                time.sleep(1000)
        except OSError:
            break
        count += 1
    print(count)
""")
"""Forks a harmless number of times and prints how often it could."""

# By name: the program and the reasons that may be given.
CHEATS = {
    name: (_text(text), reasons)
    for name, (text, reasons) in {
        "exit_at_once": ("import os\nos._exit(0)\nassert False", "exit"),
        "exit_politely": ("import sys\nsys.exit(0)", "exit"),
        "exit_exception": ("raise SystemExit", "exit"),
        "exit_in_a_thread": (
            "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\ntime.sleep(1000)",
            "exit",
        ),
        "exit_afterwards": ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "exception"),
        "exit_while_told": (
            "import os\nclass E(Exception):\n    __str__ = lambda self: os._exit(0)\nraise E",
            "exit",
        ),
        "no_text": ("class E(BaseException):\n    __str__ = lambda self: 1 / 0\nraise E", "exception"),
        "hook": ("import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False", "exception"),
        "says_so": ("print('passed')\nprint('0' * 64)\nassert False, 'passed'", "exception"),
        "writes_everywhere": (
            """
            for number in opened:
                with contextlib.suppress(OSError):
                    os.write(number, b"passed")
            os._exit(0)
            """,
            "exit",
        ),
        "writes_json": (
            """
            for number in opened:
                with contextlib.suppress(OSError):
                    os.write(number, b'{"reason": "passed", "passed": true, "detail": "", "status": 0}')
            os._exit(0)
            """,
            "exception",
        ),
        "writes_nested": (
            """
            for number in opened:
                with contextlib.suppress(OSError):
                    os.write(number, b"[" * 60_000)
            os._exit(0)
            """,
            "exit",
        ),
        "floods_everything": (
            """
            while True:
                for number in opened:
                    with contextlib.suppress(OSError):
                        os.write(number, b"0" * 65536)
            """,
            "output",
        ),
        "closes_everything": ("import os\nos.closerange(0, 4096)", "exit"),
        "other_errors": (
            """
            import builtins
            builtins.AssertionError = builtins.BaseException = builtins.Exception = OSError
            assert False
            """,
            "exception exit",
        ),
        "other_functions": (
            """
            import builtins, json, os, sys
            os._exit = os.write = os.getpid = json.dumps = sys.exit = lambda *_, **__: None
            builtins.BaseException = builtins.isinstance = builtins.exec = None
            assert False
            """,
            "exit",
        ),
        "goes_on_in_a_copy": ("import os\nif os.fork():\n    os._exit(0)", "exit"),
        "goes_on_in_a_copy_awaited": ("import os\nif os.fork():\n    os.wait()\n    os._exit(0)", "exit"),
        "copy_outlives": ("import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nassert False", "exception"),
        "signal_for_the_end": (
            "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.raise_signal(14)\n1 / 0",
            "exit",
        ),
        "input": ("input()", "exception"),
        "unfinished": ("def f(:", "exception"),
        "null": ("x = '\0'", "exception"),
        "not_text": ("x = '\ud800'", "exception"),
        "nested": ("(" * 100_000, "exception memory signal"),
        "no_numpy": ("import numpy", "exception"),
        "no_sandbox": ("from stagjax.evaluation import sandbox_child", "exception"),
        "no_main": ("import __main__\n__main__.main()", "exception"),
    }.items()
}

HARMS = {
    name: (textwrap.dedent(text), reasons)
    for name, (text, reasons) in {
        "crash": ("import ctypes\nctypes.string_at(0)", "signal"),
        # Comparing takes time in proportion to the depth; showing them would take its square.
        "deep": (
            """
            import sys
            sys.setrecursionlimit(10**9)
            x = y = ()
            for _ in range(300_000):
                x, y = (x,), (y,)
            x == y
            assert False
            """,
            "signal exception",
        ),
        "endless_recursion": ("def f():\n    f()\nf()", "exception"),
        "memory_at_once": ("x = bytearray(1 << 40)", "memory"),
        "memory_in_steps": ("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "memory"),
        "prints": ("while True:\n    print('x' * 1000)", "output"),
        "threads": (
            "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(1000,)).start()",
            "processes",
        ),
        "large_file": ("with open('x', 'wb') as file:\n    while True:\n        file.write(b'x' * 65536)", "files"),
        "many_files": (
            "import itertools\nfor n in itertools.count():\n    open(str(n), 'wb').write(b'x' * 500_000)",
            "files",
        ),
        "empty_files": ("import itertools\nfor n in itertools.count():\n    open(str(n), 'wb').close()", "files"),
        # Each kind is needed to have too many.
        "empty_entries": (
            """
            import os
            open("x", "w").close()
            for n in range(300):
                os.mkdir(f"directory {n}"), os.mkfifo(f"pipe {n}"), os.symlink("x", f"link {n}"), os.link("x", f"x {n}")
            """,
            "files",
        ),
        "open_files": ("x = []\nwhile True:\n    x.append(open('x', 'w'))", "files"),
        "strange_files": (
            """
            import os
            os.makedirs("a/b/c")
            os.symlink("/", "root")
            os.mkfifo("a/pipe")
            for name in ("a/b/c", "a/b", "a"):
                os.chmod(name, 0)
            assert False
            """,
            "exception",
        ),
        "kills": (
            """
            import contextlib, os
            for number in (os.getppid(), 1, -1, OUTSIDE):
                with contextlib.suppress(OSError):
                    os.kill(number, 9)
            assert False
            """,
            "exception",
        ),
        "daemons": (
            """
            import os, time
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        while True:
                            time.sleep(0.01)
                            open(str(os.getpid()), "w").write("here")
                    os._exit(0)
            assert False
            """,
            "exception",
        ),
    }.items()
}

_FILL = """
import contextlib, mmap, os, socket, sys, time
took, held = 0, []
def file():
    name = str(len(os.listdir()))
    held.append(os.open(name, os.O_RDWR | os.O_CREAT))
    os.unlink(name)
    return held[-1]
def write(descriptor, data=b"x" * 700_000):
    global took
    took += os.write(descriptor, data)
    print("took", took, file=sys.stderr)
def sparse():
    descriptor = file()
    for offset in range(0, 1 << 20, 4096):
        os.lseek(descriptor, offset, os.SEEK_SET)
        write(descriptor, b"x")
def nameless():
    held.append(os.open(".", os.O_RDWR | os.O_TMPFILE))
    write(held[-1])
def passed_on():
    held.append(socket.socketpair())
    descriptor = file()
    write(descriptor)
    socket.send_fds(held[-2][0], [b"x"], [descriptor])
    os.close(descriptor)
def mapped():
    global took
    descriptor = file()
    os.ftruncate(descriptor, 1 << 20)
    held.append(mmap.mmap(descriptor, 1 << 20))
    for offset in range(0, 1 << 20, 4096):
        held[-1][offset] = 1
    took += 1 << 20
    print("took", took, file=sys.stderr)
def as_output(take):
    descriptor = file()
    with contextlib.suppress(OSError):
        take(descriptor)
    write(1)
def copied():
    global took
    told, tell = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            for _ in range(3):
                write(file())
            os.write(tell, b"1")
        os.close(tell)
        time.sleep(1000)
    os.close(tell)
    if os.read(told, 1) != b"1":
        raise OSError(28, "a copy had no space")
    took += 2_100_000
for _ in range(12):
    {}
"""
"""Tries to hold 12 MiB, in a way that nobody who looks at the directory sees."""

# Each tries to hold more than it may, and tells how much it has.
FILLS = {
    name: (_FILL.format(text), reasons)
    for name, (text, reasons) in {
        "unlinked": ("write(file())", "files"),
        "nameless": ("nameless()", "files"),
        "at_a_place": (
            "took += os.pwrite(file(), b'x' * 700_000, 0)\n    print('took', took, file=sys.stderr)",
            "files",
        ),
        "sparse": ("sparse()", "files"),
        "passed_on": ("passed_on()", "files"),
        "mapped": ("mapped()", "files signal"),
        "copied": ("copied()", "files"),
        "output_replaced": ("as_output(lambda file: os.dup2(file, 1))", "files output"),
        "output_closed": ("as_output(lambda file: (os.close(1), os.dup(file)))", "files output"),
        "output_closed_with_others": ("as_output(lambda file: (os.closerange(1, 2), os.dup(file)))", "files output"),
    }.items()
}

# None of these ends: each is stopped by the limit that it runs into.
IDLE = _programs(
    sleep="import time\ntime.sleep(1000)",
    stop="import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
)
BUSY = _programs(
    loop="while True:\n    pass",
    deaf_loop="""
        import contextlib, signal
        for number in range(1, 65):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    """,
    # Run once the limit on processes has been seen to hold.
    fork_bomb="""
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
)
UNRULY = {
    "large_number": ("9 ** 9 ** 9", "time memory"),
    "killing_bomb": (
        """
import os, signal
def copy():
    try:
        return os.fork()
    except OSError:
        return 0
while True:
    copy()
    os.setsid() if os.getpid() != os.getsid(0) and os.getpid() != os.getpgrp() else None
    try:
        os.kill(-1, 9)
    except OSError:
        pass
""",
        "time exit signal",
    ),
}
"""Busy, too; how they end is the kernel's to choose."""

_MUST_FAIL = """
try:
{}
except OSError as error:
    print(error)
else:
    assert False
"""
_CALL = """
import ctypes, os
libc, machine = ctypes.CDLL(None, use_errno=True), os.uname().machine
if libc.{} < 0:
    raise OSError(ctypes.get_errno(), "")
"""
_CALLS = {
    "unshare": "unshare(0x10000000)",
    "clone": "syscall(ctypes.c_long({'x86_64': 56, 'aarch64': 220}[machine]), 0x10000011, 0, 0, 0, 0)",
    "ptrace": "ptrace(16, os.getppid(), 0, 0)",
    "mount": "mount(b'none', b'.', b'tmpfs', 0, None)",
    "shared_memory": "shmget(0, 4096, 0o1600)",
    "io_uring": "syscall(ctypes.c_long(425), 4, 0)",
    # Disk beyond the size of a file.
    "reserve": "fallocate(os.open('x', os.O_RDWR | os.O_CREAT), 1, ctypes.c_long(0), ctypes.c_long(8 << 20))",
    "reserve_by_ioctl": "ioctl(os.open('x', os.O_RDWR | os.O_CREAT), ctypes.c_ulong(0x4030582A), "
    "(ctypes.c_long * 6)(0, 0, 1 << 20))",
}

# Each of these must raise `OSError`, and then passes.
FORBIDDEN = {
    name: _MUST_FAIL.format(textwrap.indent(text, "    "))
    for name, text in {
        "connect": "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=2)",
        "connect_elsewhere": "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)",
        "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', PORT))",
        "unix": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "listen": "import socket\nsocket.create_server(('127.0.0.1', 0))",
        "read_secret": "open('SECRET')",
        "read_passwords": "open('/etc/passwd')",
        "read_processes": "import os\nos.listdir('/proc')",
        "read_memory": "open('/proc/OUTSIDE/environ')",
        "write_root": "open('/x', 'w')",
        "write_library": "import os\nopen(os.__file__, 'a')",
        "write_temporary": "open('/dev/shm/x', 'w')",
        "become_root": "import os\nos.setuid(0)",
        "leave_root": "import os\nos.chroot('.')",
        "shell": "import os\nos.execv('/bin/sh', ['sh'])",
        "python": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
        "kill_outside": "import os\nos.kill(OUTSIDE, 9)",
        "attributes": "import os\nos.mkdir('x')\nos.setxattr('x', 'user.x', b'x')",
        "raise_limit": "import resource\ntry:\n    resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))\n"
        "except ValueError as error:\n    raise OSError(error)",
        **{f"call_{name}": _CALL.format(call) for name, call in _CALLS.items()},
    }.items()
}
