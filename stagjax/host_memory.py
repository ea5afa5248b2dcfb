"""How a process that trains on the CPU holds its memory; set before JAX is loaded, so this module does not load it."""

import ctypes
import os
import pathlib

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
ACCELERATORS = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0")


def keep_host_memory() -> bool:
    """Let this process keep the memory that it frees, where training will be on the CPU; return whether it was done.

    XLA allocates a step's temporaries anew for every step, and glibc gives blocks of that size back to the system, so
    that each step faults in every page again. Keeping them costs memory that stays with the process, and saves a sixth
    of a step (docs/speed.md). Call it before threads start: an arena of theirs could not grow beyond 64 MB.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and not any(map(os.path.exists, ACCELERATORS))
    if not on_cpu or not pathlib.Path("/proc/self").exists():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return all([libc.mallopt(M_ARENA_MAX, 1), libc.mallopt(M_MMAP_MAX, 0), libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)])
