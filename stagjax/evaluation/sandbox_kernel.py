"""What the sandbox asks of Linux: namespaces, mounts, no privileges, filtered system calls. Standard library only."""

import ctypes
import errno
import os
import platform
import signal
import socket
import struct
from typing import NamedTuple

NEW_MOUNTS, NEW_SYSTEM_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_ANY_NAMESPACE = 0x7E020000  # those and cgroups, as flags of clone(2)

_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
_PRIVATE_BELOW = 0x4000 | 0x40000
_DETACH = 2

_SET_DEATH_SIGNAL, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVILEGES = 1, 22, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522


class _Machine(NamedTuple):
    """What the filter must know of an architecture.

    Attributes:
      audit: its number in the kernel's audit interface.
      foreign: system calls from here on belong to another calling convention.
      clone, clone3, socketpair, pivot_root: numbers of calls that are treated one by one.
      denied: numbers of calls that fail.
    """

    audit: int
    foreign: int
    clone: int
    clone3: int
    socketpair: int
    pivot_root: int
    denied: tuple[int, ...]


# Numbers of x86-64 and of Arm64, which are those of the kernel's generic table. Denied are: sockets (without a network
# namespace nothing else is in the way to the network); another program in this one's place; what outlives a process
# (System V and POSIX IPC, keys); and the calls with which escapes tend to begin.
_DENIED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "execve": (59, 221),
    "execveat": (322, 281),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_setup": (206, 0),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0x40000000, 56, 435, 53, 155, tuple(x86 for x86, _ in _DENIED.values())),
    "aarch64": _Machine(0xC00000B7, 0xFFFFFFFF, 220, 435, 199, 41, tuple(arm for _, arm in _DENIED.values())),
}

MACHINES = tuple(_MACHINES)
"""Architectures whose system calls the filter knows, as `platform.machine()` names them."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns -1 on failure; raise `OSError` with its name."""
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _prctl(option: int, *arguments: int | ctypes.c_void_p) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _call("prctl", option, *(ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded))


def unshare(flags: int) -> None:
    """Give this process (for `NEW_PROCESSES`: its children) namespaces of its own; raise `OSError` where it may not."""
    _call("unshare", flags)


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
    _call("mount", b"none", b"/", None, _PRIVATE_BELOW, None)


def mount_memory(target: str, options: str) -> None:
    """Mount an empty file system of memory, without devices and programs; `options` are those of tmpfs."""
    flags = _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    _call("mount", b"tmpfs", target.encode(), b"tmpfs", flags, options.encode())


def make_read_only(target: str) -> None:
    """Let nobody write to a file system of memory any more."""
    flags = _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    _call("mount", b"tmpfs", target.encode(), b"tmpfs", flags, None)


def enter_root(directory: str) -> None:
    """Make a mount point the root of this mount namespace, and let go of all that was mounted before."""
    os.chdir(directory)
    # The old root is stacked on the new one, then taken off: no directory for it is needed.
    _call("syscall", ctypes.c_long(_MACHINES[platform.machine()].pivot_root), b".", b".")
    _call("umount2", b".", _DETACH)
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
    _call("capset", header, none)
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)


def filter_system_calls() -> None:
    """Let the denied system calls of this process and its descendants fail; needs `drop_privileges` before."""
    machine = _MACHINES[platform.machine()]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _instructions(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)))
    _prctl(_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(program)))


def _instructions(machine: _Machine) -> list[tuple[int, int, int, int]]:
    """Return the filter: operation, jumps if true and if false, operand."""
    load, equal, at_least, any_bit, mask, give = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    number, architecture, first_argument, second_argument = 0, 4, 16, 24
    allow, kill, fail = 0x7FFF0000, 0x80000000, 0x00050000
    code = [
        (load, 0, 0, architecture),
        (equal, 1, 0, machine.audit),
        (give, 0, 0, kill),
        (load, 0, 0, number),
        (at_least, 0, 1, machine.foreign),
        (give, 0, 0, fail | errno.EPERM),
        # The C library then falls back to clone, whose flags a filter can read.
        (equal, 0, 1, machine.clone3),
        (give, 0, 0, fail | errno.ENOSYS),
    ]
    for denied in machine.denied:
        code += [(equal, 0, 1, denied), (give, 0, 0, fail | errno.EPERM)]
    code += [
        (equal, 0, 4, machine.clone),
        (load, 0, 0, first_argument),
        (any_bit, 0, 1, _ANY_NAMESPACE),
        (give, 0, 0, fail | errno.EPERM),
        (give, 0, 0, allow),
        # Connected to each other, streams reach nobody else; datagrams can be sent to any name. asyncio needs a pair.
        (equal, 0, 4, machine.socketpair),
        (load, 0, 0, second_argument),
        (mask, 0, 0, 0xF),
        (equal, 1, 0, socket.SOCK_STREAM),
        (give, 0, 0, fail | errno.EPERM),
        (give, 0, 0, allow),
    ]
    return code
