"""Start-up of a process that computes: where compiled programs are kept, and what stays off the terminal."""

import logging
import os
import pathlib
import warnings

import jax

from stagjax import libtpu


def start_up() -> None:
    """Prepare JAX for a command; call it before the first computation.

    Compiled programs are kept in `JAX_COMPILATION_CACHE_DIR`, by default in the user's cache directory, so that only
    the first run of a program on a machine waits for the compiler.
    """
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "stagjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A cache that cannot be written costs time, not results; JAX warns of it once for every program.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
    logging.getLogger("jax._src.compiler").setLevel(logging.ERROR)
    if libtpu.is_installed() and not libtpu.has_tpus():
        # JAX tries libtpu first, which says at length that it finds no TPU.
        with libtpu.quiet():
            jax.devices()
