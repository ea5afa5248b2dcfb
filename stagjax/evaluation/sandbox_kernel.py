"""What the sandbox asks of Linux: namespaces, mounts, no privileges. Standard library only."""

import ctypes
import errno
import os
import platform
import signal
import struct

NEW_MOUNTS, NEW_SYSTEM_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
_PRIVATE_BELOW = 0x4000 | 0x40000
_DETACH = 2

_SET_DEATH_SIGNAL, _SET_SUBREAPER, _SET_NO_NEW_PRIVILEGES = 1, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # the C library has no name for it

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """Return what a function of the C library returns; raise `OSError` with its name if that is below 0."""
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _prctl(option: int, argument: int) -> None:
    call("prctl", option, *map(ctypes.c_ulong, (argument, 0, 0, 0)))


def unshare(flags: int) -> None:
    """Give this process (for `NEW_PROCESSES`: its children) namespaces of its own; raise `OSError` where it may not."""
    call("unshare", flags)


def map_to_self(uid: int, gid: int, proc: int) -> None:
    """In a user namespace just made, let user and group stand for themselves: the only map that needs no privilege.

    Args:
      uid: the process's user before it made the namespace.
      gid: its group.
      proc: directory descriptor of /proc, which the jail does not hold.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def make_mounts_private() -> None:
    """Let no mount of this namespace show in another."""
    call("mount", b"none", b"/", None, _PRIVATE_BELOW, None)


def mount_memory(target: str, options: str) -> None:
    """Mount an empty file system of memory, without devices and programs; `options` are those of tmpfs."""
    flags = _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    call("mount", b"tmpfs", target.encode(), b"tmpfs", flags, options.encode())


def make_read_only(target: str) -> None:
    """Let nobody write to a file system of memory any more."""
    flags = _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    call("mount", b"tmpfs", target.encode(), b"tmpfs", flags, None)


def enter_root(directory: str) -> None:
    """Make a mount point the root of this mount namespace, and let go of all that was mounted before."""
    os.chdir(directory)
    # The old root is stacked on the new one, then taken off: no directory for it is needed.
    call("syscall", ctypes.c_long(_PIVOT_ROOT[platform.machine()]), b".", b".")
    call("umount2", b".", _DETACH)
    os.chdir("/")


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends, so that they can be waited for."""
    _prctl(_SET_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends, however that happens; a change of user undoes it."""
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def drop_privileges(uid: int | None, gid: int | None) -> None:
    """Become another user without groups (None: stay the same), then give up every capability, for good."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
            raise OSError(errno.EPERM, f"cannot become user {uid}")
    header, none = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    call("capset", header, none)
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
