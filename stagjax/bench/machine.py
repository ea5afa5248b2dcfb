"""What a measurement was taken on: devices, versions, flags."""

import datetime
import os
import pathlib
import platform
from typing import Any

import jax
import jaxlib

from stagjax import __version__


def describe() -> dict[str, Any]:
    """Return the devices, the processes and their cores, the versions and the flags, ready for JSON."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores_per_process": cores,
        "stagjax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
