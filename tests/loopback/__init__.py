"""Keeps tests on this machine: the process that imports this, and every Python process that it starts.

Those find `sitecustomize.py` on PYTHONPATH (and this repository, wherever they run) and import it by its name. Clients
of buckets read their variables at every request, so that one that outlives its test's server finds a closed port of
this machine, and not Google's store.
"""

import os
import pathlib
import tempfile

import pytest

_REACHED = pathlib.Path(tempfile.mkstemp(prefix="left-loopback-")[1])
_HERE = pathlib.Path(__file__).parent
_CLOSED = "127.0.0.1:1"
os.environ |= {
    "LEFT_LOOPBACK": str(_REACHED),
    "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "STORAGE_EMULATOR_HOST": f"http://{_CLOSED}",
    "TENSORSTORE_GCS_HTTP_URL": f"http://{_CLOSED}",
    "GCE_METADATA_ROOT": _CLOSED,
    "NO_GCE_CHECK": "true",
}
from tests.loopback import sitecustomize  # noqa: E402, F401


@pytest.fixture(autouse=True)
def left_loopback():
    """Fail a test that reached, itself or in a process that it started, for something that is not on this machine."""
    yield _REACHED
    reached = _REACHED.read_text()
    _REACHED.write_text("")
    assert not reached, reached


def remove() -> None:
    """Remove the file in which it is noted."""
    _REACHED.unlink(missing_ok=True)
