"""JSON lines over a socket: one message a line, sent whole by whichever thread has something to say."""

import hmac
import json
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

_SEND_SECONDS = 10.0  # A reader that has not emptied its buffer for so long does not read any more.
LONGEST = 1 << 24  # bytes of a line
_DEPTH = 32  # of what a message holds

Message = dict[str, Any]


class Lines:
    """A connected socket that carries messages; reading and writing may be done by two threads.

    Attributes:
      socket: for `poll`.
      longest: bytes of a line that is taken; what may not be known yet is given little.
    """

    def __init__(self, connected: socket.socket, longest: int = LONGEST):
        self.socket, self.longest = connected, longest
        connected.settimeout(_SEND_SECONDS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._come = bytearray()
        self._searched = 0  # bytes of it that hold no end of a line
        self._sending = threading.Lock()
        self._seals: tuple[_Seal, _Seal] | None = None

    def seal(self, sending: bytes, receiving: bytes) -> None:
        """Put a code under these keys on every line from here on, and take no line without."""
        self._seals = _Seal(sending), _Seal(receiving)

    def send(self, message: Message) -> bool:
        """Send a message; return whether the other end could still be written to."""
        line = json.dumps(message).encode()
        try:
            with self._sending:
                if self._seals:
                    line = self._seals[0].next_code(line) + b" " + line
                self.socket.sendall(line + b"\n")
        except OSError:
            return False
        return True

    def fill(self) -> bool:
        """Read what has come, for `messages`; return whether the other end is still there.

        Raises:
          TimeoutError: nothing comes.
        """
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            return False
        self._come += data
        return bool(data)

    def messages(self) -> Iterator[Message]:
        """Yield the messages that have come whole; whoever stops early gets the others next time.

        Raises:
          ValueError: what has come is no message, or not from whom the connection was sealed with.
        """
        while (end := self._come.find(b"\n", self._searched)) >= 0:
            if end > self.longest:
                break
            line, self._searched = bytes(self._come[:end]), 0
            del self._come[: end + 1]
            yield self._opened(line)
        self._searched = len(self._come)
        if len(self._come) > self.longest:
            raise ValueError(f"a line of more than {self.longest} bytes")

    def is_hung_up(self) -> bool:
        """Return whether the other end writes no more, though what it wrote may not have been read yet."""
        ended = getattr(select, "POLLRDHUP", select.POLLHUP)  # Linux alone knows the first
        state = select.poll()
        state.register(self.socket, ended)
        return bool(state.poll(0))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _opened(self, line: bytes) -> Message:
        if self._seals:
            code, _, line = line.partition(b" ")
            if not hmac.compare_digest(code, self._seals[1].next_code(line)):
                raise ValueError("a line that was not written by whom it should be, or was changed, repeated or lost")
        try:
            message = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError("a line that is not JSON") from error
        if not isinstance(message, dict) or not _fits(message, _DEPTH):
            raise ValueError(f"a line that is no JSON object of at most {_DEPTH} levels")
        return message


class _Seal:
    """Codes (HMAC-SHA256) of one direction's lines, each with its number: none is changed, left out or said twice."""

    def __init__(self, key: bytes):
        self._key, self._number = key, 0

    def next_code(self, line: bytes) -> bytes:
        self._number += 1
        return hmac.digest(self._key, self._number.to_bytes(8) + line, "sha256").hex().encode()


def _fits(value: Any, depth: int) -> bool:
    """Return whether nothing lies deeper than `depth`: who parses it and who writes it again both recurse."""
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return within is None or (depth > 0 and all(_fits(inner, depth - 1) for inner in within))
