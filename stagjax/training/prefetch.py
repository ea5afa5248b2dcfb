"""Batches made ready by a thread while the devices work, so that reading costs a step nothing unless it is slower."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

DEPTH = 2
"""Batches that wait, at most: one for the next step, and one against a reader that is slow now and then."""


class Prefetcher:
    """Calls `read(0)`, `read(1)` and so on in a thread of its own and hands out the results in that order.

    Args:
      read: makes a batch ready; no other thread calls it meanwhile.
      first: number of the first batch.
      end: number behind the last batch.
      depth: batches that wait, at most.
    """

    def __init__(self, read: Callable[[int], Any], first: int, end: int, depth: int = DEPTH):
        self._read, self._numbers, self._depth = read, range(first, end), depth
        self._ready: collections.deque[Any] = collections.deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a read that never comes back must not keep the process from its end.
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def take(self, seconds: float = 0.0) -> Any | None:
        """Return the next batch, or None if there is none after `seconds`.

        Raises:
          Exception: what `read` raised, once the batches before it are taken.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)
            self._changed.notify_all()
            return self._ready.popleft()

    def close(self) -> None:
        """Make the thread end after the batch that it works on; a read that hangs is not waited for."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        for number in self._numbers:
            try:
                batch = self._read(number)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                if self._closed:
                    return
                self._ready.append(batch)
                self._changed.notify_all()
