"""libtpu on a machine without TPUs: it is looked for nothing, shared by processes, and quiet."""

import contextlib
import glob
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

# Where there are no TPUs to be found, they are not looked for, and there is nothing that processes could not share.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def is_installed() -> bool:
    """Return whether JAX would find libtpu."""
    return importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ


def has_tpus() -> bool:
    """Return whether this machine has TPUs."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Load libtpu inside of this: without TPUs it does not search for them, and what it writes to stderr is held back.

    What was held back is shown if the block fails with another error than libtpu's own.
    """
    with _environment(), _silence():
        yield


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set variables that are not set, and take them back: a later start of real TPUs must not see them."""
    wanted = {} if has_tpus() else _ENVIRONMENT
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException as error:
            os.dup2(stderr, 2)
            if not isinstance(error, RuntimeError):
                kept.seek(0)
                os.write(2, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
