"""JSON lines over a socket: one message a line, sent whole by whichever thread has something to say."""

import json
import socket
import threading
from typing import Any

_SEND_SECONDS = 10.0  # A reader that has not emptied its buffer for so long does not read any more.

Message = dict[str, Any]


class Lines:
    """A connected socket that carries messages; reading and writing may be done by two threads.

    Attributes:
      socket: for `select`.
    """

    def __init__(self, connected: socket.socket):
        self.socket = connected
        connected.settimeout(_SEND_SECONDS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._sending = threading.Lock()

    def send(self, message: Message) -> bool:
        """Send a message; return whether the other end could still be written to."""
        try:
            with self._sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Return the messages that have come, an empty list where one has only begun; None at the end.

        Raises:
          ValueError: what comes is no message.
          TimeoutError: nothing comes.
        """
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages) or len(self._rest) > 1 << 24:
            raise ValueError("not a message")
        return messages

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
