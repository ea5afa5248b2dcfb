"""The only files a program sees: a copy of Python's standard library and one empty directory. Standard library only."""

import contextlib
import importlib
import importlib.machinery
import itertools
import os
import pathlib
import secrets
import shutil
import sys
import tempfile

from stagjax.evaluation import sandbox_kernel as kernel

HOME = "/tmp"
"""The directory, inside, below which programs may write."""

_LIBRARY_SIZE = "size=256m,mode=755"
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
}
_NOT_LOADED = ("_tkinter", "_curses", "readline", "_test", "_xx", "xx", "_ctypes_test", "_dbm", "_gdbm")
# What programs of benchmarks import; each of them has it at once, because it is a copy of a process that has it.
_COMMON = (
    "abc array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools "
    "hashlib heapq io itertools json math numbers operator os pprint random re statistics string struct sys textwrap "
    "time traceback types typing unicodedata"
).split()


def load_modules() -> None:
    """Import what programs may need and cannot load inside, where there are no libraries, and what they need often."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    extensions = [
        path.name.removesuffix(suffix) for entry in sys.path for path in pathlib.Path(entry).glob(f"*{suffix}")
    ]
    for name in (*_COMMON, *sorted(extensions)):
        if not name.startswith(_NOT_LOADED):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def enter() -> str:
    """Make a root directory of memory and enter it; needs a mount namespace, with which it goes. Return its path."""
    # Mounted over /proc, which exists everywhere and holds none of what is copied.
    kernel.make_mounts_private()
    kernel.mount_memory("/proc", _LIBRARY_SIZE)
    _copy_library("/proc")
    kernel.enter_root("/proc")
    kernel.make_read_only("/")
    return "/"


def build(directory: str) -> str:
    """Make a root directory for programs on disk, below `directory`; return its path. Call `remove` in the end."""
    jail = tempfile.mkdtemp(prefix="stagjax_sandbox_", dir=directory)
    try:
        os.chmod(jail, 0o755)
        _copy_library(jail)
    except BaseException:
        remove(jail)
        raise
    return jail


def remove(directory: str) -> None:
    """Remove a directory with all it holds, however deep; no process may use it any more.

    Programs can nest directories deeper than a path is long, or than functions can call themselves.
    """
    unused = (f"{directory}/{secrets.token_hex(16)}_{n}" for n in itertools.count())
    while entries := list(os.scandir(directory)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            for below in list(os.scandir(entry.path)):
                if below.is_dir(follow_symlinks=False):
                    os.rename(below.path, next(unused))
                else:
                    os.unlink(below.path)
            os.rmdir(entry.path)
    os.rmdir(directory)


def _copy_library(jail: str) -> None:
    """Copy the standard library, compiled too, to where it also is outside, and make the directory for programs."""
    endings = (".py", f".{sys.implementation.cache_tag}.pyc")
    for entry in sys.path:
        for directory, below, files in os.walk(entry):
            below[:] = [name for name in below if name not in _LEFT_OUT]
            os.makedirs(jail + directory, exist_ok=True)
            for name in files:
                if name.endswith(endings):
                    # Not the mode, which may keep other users from reading; but the time, by which Python
                    # knows whether what is compiled is still valid.
                    source, copy = f"{directory}/{name}", f"{jail}{directory}/{name}"
                    shutil.copyfile(source, copy)
                    modified = os.stat(source).st_mtime_ns
                    os.utime(copy, ns=(modified, modified))
    os.makedirs(jail + HOME, exist_ok=True)
    os.chmod(jail + HOME, 0o711)
