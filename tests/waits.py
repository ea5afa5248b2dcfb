"""Waiting in tests: for events, and not for a time."""

import socket
import time
from collections.abc import Callable
from typing import Any

HANG = 600.0
"""Seconds after which something hangs: many times what it takes on a busy machine, so that no outcome depends on it."""


def eventually(condition: Callable[[], Any]) -> Any:
    """Return what `condition` says as soon as it is true; what it says last if it never is."""
    until = time.monotonic() + HANG
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def reserved() -> socket.socket:
    """Return a socket whose port nobody is given until it is closed, for a process that is told where to listen."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # The process may listen there meanwhile.
    held.bind(("127.0.0.1", 0))
    return held
