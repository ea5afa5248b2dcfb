"""Memory that does not suffice: one line that says of what, and before Linux ends the process without a word."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from stagjax.errors import RunFailed


@contextlib.contextmanager
def told(what: str, then: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Raise `RunFailed` where memory runs out, on a device or in the host; other errors pass.

    Args:
      what: what was asked for, and what to change.
      then: called for what else to say.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).partition("\n")[0][:200]
        raise RunFailed(f"out of memory: {what}{f' ({why})' if why else ''}{then()}") from error


def check_host(needed: float, what: str) -> None:
    """Raise `RunFailed` if this process computes on the CPU and needs more bytes than the machine has.

    An accelerator refuses an array that has no room; Linux lends more than there is, and ends the process later.
    """
    if jax.default_backend() == "cpu" and needed > host_bytes():
        gigabytes = f"{needed / 1e9:,.1f} GB of the {host_bytes() / 1e9:,.1f} GB that are here"
        raise RunFailed(f"out of memory: {what} ({gigabytes})")


def host_bytes() -> int:
    """Return the bytes of memory of this machine, or of the container where that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Return what a program needs on a device: arguments, results that do not lie where they lay, temporaries."""
    memory = compiled.memory_analysis()
    moved = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + moved + memory.temp_size_in_bytes


def held_bytes(abstract: Any) -> int:
    """Return what this process holds of a tree of arrays, on all of its devices."""
    leaves = jax.tree.leaves(abstract)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize * len(leaf.sharding.addressable_devices)
        for leaf in leaves
    )
