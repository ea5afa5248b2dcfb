"""Which system calls a program may make, and which wait until the disk they need is counted. Standard library only.

Where a program has no file system of its own, nothing in the kernel bounds what it writes in all: a limit on a file's
size is not one on their number, and a file without a name is seen by nobody who looks from time to time. There, each
call that can take disk waits until `Ledger` has counted it. What was taken is never given back.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from typing import NamedTuple

from stagjax.evaluation.sandbox_kernel import call

_ANY_NAMESPACE = 0x7E020000  # as flags of clone(2)
_CREATES = 0x40 | 0x400000  # O_CREAT, O_TMPFILE
_SHARED, _ANONYMOUS = 0x1, 0x20  # mappings
_CONTROLS, _OF_TERMINALS = 0xFF00, ord("T") << 8  # what an ioctl is for; this kind also has FIONBIO and FIOCLEX
_BLOCK = 4096


class _Machine(NamedTuple):
    """What the filter must know of an architecture.

    Attributes:
      audit: its number in the kernel's audit interface.
      foreign: system calls from here on belong to another calling convention.
      column: of its numbers in the tables below.
    """

    audit: int
    foreign: int
    column: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 0x40000000, 0), "aarch64": _Machine(0xC00000B7, 0xFFFFFFFF, 1)}

MACHINES = tuple(_MACHINES)
"""Architectures whose system calls the filter knows, as `platform.machine()` names them."""

# Numbers of x86-64 and of Arm64, which are those of the kernel's generic table. Denied are: sockets (without a network
# namespace nothing else is in the way to the network); another program in this one's place; what outlives a process
# (System V and POSIX IPC, keys); what takes memory or disk that no limit knows (files of memory, attributes of files);
# and the calls with which escapes tend to begin.
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
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "file_setattr": (469, 469),
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
# Denied only where disk is counted: how much these take is not among their arguments, or is without meaning.
_UNCOUNTABLE = {
    "writev": (20, 66),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "copy_file_range": (326, 285),
    "fallocate": (285, 47),
    "openat2": (437, 437),
}
_WRITES = {"write": (1, 64), "pwrite64": (18, 68)}
_NEW_ENTRIES = {
    "creat": (85, None),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
}
_OTHERS = {
    "open": (2, None),
    "openat": (257, 56),
    "mmap": (9, 222),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup2": (33, None),
    "dup3": (292, 24),
    "ioctl": (16, 29),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socketpair": (53, 199),
    "seccomp": (317, 277),
}

_Code = list[tuple[int, int, int, int]]
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _MASK, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # the arguments' lower halves are 8 bytes apart

_ALLOW, _KILL = (_GIVE, 0, 0, 0x7FFF0000), (_GIVE, 0, 0, 0x80000000)
_COUNT = (_GIVE, 0, 0, 0x7FC00000)  # ask who listens


def _fail(number: int) -> tuple[int, int, int, int]:
    return _GIVE, 0, 0, 0x00050000 | number


def install(counted: bool) -> int | None:
    """Filter the calls of this process and its descendants; needs `drop_privileges` before.

    Args:
      counted: whether calls that take disk wait for a `Ledger`.

    Returns:
      What the ledger listens to, if they do.
    """
    machine = _MACHINES[platform.machine()]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _instructions(machine, counted))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)))
    set_filter, new_listener = 1, 8
    number, flags = _OTHERS["seccomp"][machine.column], new_listener if counted else 0
    arguments = (ctypes.c_long(value) for value in (number, set_filter, flags, ctypes.addressof(program)))
    made = call("syscall", *arguments)
    return made if counted else None


def _instructions(machine: _Machine, counted: bool) -> _Code:
    """Return the filter: operation, jumps if true and if false, operand."""
    permitted, denied = errno.EPERM, _DENIED | (_UNCOUNTABLE if counted else {})
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),
        _KILL,
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, machine.foreign),
        _fail(permitted),
    ]

    def when(numbers: tuple[int | None, ...], *answer: tuple[int, int, int, int]) -> None:
        """Add an answer to a call; it must end in one that is given, since it may overwrite the call's number."""
        if numbers[machine.column] is not None:
            code.extend([(_EQUAL, 0, len(answer), numbers[machine.column]), *answer])

    def argument(index: int) -> tuple[int, int, int, int]:
        return _LOAD, 0, 0, _FIRST_ARGUMENT + 8 * index

    # The C library then falls back to clone, whose flags a filter can read.
    when(_OTHERS["clone3"], _fail(errno.ENOSYS))
    if counted:
        _count_disk(when, argument)
    for numbers in denied.values():
        when(numbers, _fail(permitted))
    when(_OTHERS["clone"], argument(0), (_ANY_BIT, 0, 1, _ANY_NAMESPACE), _fail(permitted), _ALLOW)
    # Connected to each other, streams reach nobody else; datagrams can be sent to any name. asyncio needs a pair.
    stream = (_EQUAL, 1, 0, socket.SOCK_STREAM)
    when(_OTHERS["socketpair"], argument(1), (_MASK, 0, 0, 0xF), stream, _fail(permitted), _ALLOW)
    # Others reserve disk beyond the limit on a file's size, or turn to devices.
    terminal = (_EQUAL, 1, 0, _OF_TERMINALS)
    when(_OTHERS["ioctl"], argument(1), (_MASK, 0, 0, _CONTROLS), terminal, _fail(errno.ENOTTY), _ALLOW)
    return [*code, _ALLOW]


def _count_disk(when, argument) -> None:
    """Let calls that take disk wait for who counts it."""
    # What is printed goes to the server, which has a limit for it: 1 and 2 stay what they are.
    when(_WRITES["write"], argument(0), (_EQUAL, 1, 0, 1), (_EQUAL, 0, 1, 2), _ALLOW, _COUNT)
    for name in ("dup2", "dup3"):
        when(_OTHERS[name], argument(1), (_EQUAL, 1, 0, 1), (_EQUAL, 0, 1, 2), _fail(errno.EPERM), _ALLOW)
    when(_OTHERS["close"], argument(0), (_EQUAL, 1, 0, 1), (_EQUAL, 0, 1, 2), _fail(errno.EPERM), _ALLOW)
    when(_OTHERS["close_range"], argument(0), (_AT_LEAST, 1, 0, 3), _fail(errno.EPERM), _ALLOW)
    for numbers in (_WRITES["pwrite64"], *_NEW_ENTRIES.values()):
        when(numbers, _COUNT)
    for name, index in (("open", 1), ("openat", 2)):
        when(_OTHERS[name], argument(index), (_ANY_BIT, 0, 1, _CREATES), _COUNT, _ALLOW)
    # Memory that is a file's takes disk when it is written to, without any call.
    file = (_ANY_BIT, 1, 0, _ANONYMOUS)
    when(_OTHERS["mmap"], argument(3), (_ANY_BIT, 0, 2, _SHARED), file, _COUNT, _ALLOW)


class Ledger:
    """The disk that one program may still take, all its processes together.

    Args:
      channel: stream from which the listener comes, before all else; see `hand_over`.
      disk_bytes: for data, names and directories.
      file_bytes: limit on each file's size, which the kernel holds.
      entries: files and directories that fit.
    """

    def __init__(self, channel: socket.socket, disk_bytes: int, file_bytes: int, entries: int):
        self._left = disk_bytes
        self._file = file_bytes
        self._entry = max(_BLOCK, disk_bytes // entries)
        # None comes where the program's process was not made.
        self.listener = next(iter(socket.recv_fds(channel, 1, 1)[1]), None)

    def answer(self) -> None:
        """Let a call that waits take place or fail."""
        asked = bytearray(80)
        with contextlib.suppress(FileNotFoundError):  # a signal came first: the call ended, or is made again
            fcntl.ioctl(self.listener, 0xC0502100, asked)
            identity, number, *arguments = struct.unpack("=Q8xi4x8x6Q", asked)
            cost = self._cost(number, arguments)
            enough = cost <= self._left
            if enough:
                self._left -= cost
            go_on = 1  # with its arguments as they were counted, which no other thread can change
            reply = struct.pack("=QqiI", identity, 0, 0 if enough else -errno.ENOSPC, go_on if enough else 0)
            fcntl.ioctl(self.listener, 0xC0182101, bytearray(reply))

    def close(self) -> None:
        """Let go of the listener: calls that would wait then fail."""
        if self.listener is not None:
            os.close(self.listener)

    def _cost(self, number: int, arguments: list[int]) -> int:
        column = _MACHINES[platform.machine()].column
        if number == _OTHERS["mmap"][column]:
            return self._file
        if number in (numbers[column] for numbers in _WRITES.values()):
            return arguments[2] + 2 * _BLOCK  # as much as one byte on either side of a border takes
        return self._entry


def hand_over(channel: socket.socket, listener: int) -> None:
    """Send what `install` returned to the ledger."""
    socket.send_fds(channel, [b"\0"], [listener])
