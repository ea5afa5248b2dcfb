"""Where process 0 is found: who connects has little room and a few seconds to say, and prove, who it is."""

import dataclasses
import errno
import os
import socket
import time
from collections.abc import Callable

from stagjax.errors import UserError
from stagjax.hosts import messages, secret
from stagjax.hosts.lines import LONGEST, Lines, Message
from stagjax.hosts.place import Place
from stagjax.printable import one_line

STRANGER_SECONDS = 10.0  # from a connection to its hello
_STRANGER_BYTES = 1 << 20  # of a line; it may hold the whole config
_UNPROVEN_BYTES = 1 << 10
_MOST_STRANGERS = 64  # besides one for each process of the run
_MOST_REPORTS = 20

Report = Callable[[str], None]


@dataclasses.dataclass(eq=False)
class _Stranger:
    lines: Lines
    address: str
    since: float
    nonce: str
    process: int | None = None  # once it is proven


class Door:
    """The port of process 0 until all have come, and the connections of those that have not said who they are.

    Args:
      place: of process 0.
      run_secret: without it, everybody is believed.
      patience: seconds to wait for the port to be free.
      refuse: is told why the run cannot begin.
      report: is told, in one line each, who is turned away.

    Raises:
      UserError: the port is taken.
    """

    def __init__(
        self, place: Place, run_secret: bytes | None, patience: float, refuse: Callable[[str], None], report: Report
    ):
        self._secret, self._refuse, self._report = run_secret, refuse, report
        self._listener: socket.socket | None = _listen(place, patience)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._strangers: dict[int, _Stranger] = {}
        self._most = _MOST_STRANGERS + place.num_processes
        self._reported = 0

    def sources(self) -> list[int]:
        """Return the files to wait for."""
        return [*self._strangers, *([self._listener.fileno()] if self._listener else [])]

    def attend(self, source: int) -> tuple[Message, Lines] | None:
        """Deal with what has come from a source; return the hello of a process of the run, and its connection."""
        if stranger := self._strangers.get(source):
            return self._hear(stranger)
        if self._listener and source == self._listener.fileno():
            self._open()
        return None

    def close_overdue(self) -> None:
        """Close the connections of those that have not come in within their time."""
        for stranger in list(self._strangers.values()):
            if time.monotonic() - stranger.since > STRANGER_SECONDS:
                self._turn_away(stranger, f"it did not say within {STRANGER_SECONDS:.0f} s who it is")

    def close(self) -> None:
        """Let nobody come any more; whoever has not come in by now never will."""
        for stranger in self._strangers.values():
            stranger.lines.close()
        self._strangers = {}
        if self._listener:
            self._listener.close()
            self._listener = None

    def _open(self) -> None:
        try:
            connected, address = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
                time.sleep(0.05)
            return
        if len(self._strangers) >= self._most:
            self._make_room()
        nonce = secret.nonce()
        try:
            lines = Lines(connected, _UNPROVEN_BYTES if self._secret else _STRANGER_BYTES)
        except OSError:  # it has gone already
            connected.close()
            return
        shown = f"{address[0].removeprefix('::ffff:')} port {address[1]}"
        self._strangers[connected.fileno()] = _Stranger(lines, shown, time.monotonic(), nonce)
        # So that whoever connects knows that it is not another program that has this port.
        lines.send({"stagjax": "hub", "nonce": nonce if self._secret else None})

    def _make_room(self) -> None:
        """Close the oldest connection: a process of the run needs no time to come in, and tries again."""
        if self._strangers:
            self._turn_away(next(iter(self._strangers.values())), "too many connect and do not say who they are")

    def _hear(self, stranger: _Stranger) -> tuple[Message, Lines] | None:
        try:
            there = stranger.lines.fill()
            for message in stranger.lines.messages():
                if self._understand(stranger, message):
                    del self._strangers[stranger.lines.socket.fileno()]
                    stranger.lines.longest = LONGEST
                    return message, stranger.lines
            if not there:  # a port scanner, or a health check
                self._dismiss(stranger)
        except Exception as error:  # whatever it is, it is this connection's
            self._turn_away(stranger, str(error) if isinstance(error, ValueError) else repr(error))
        return None

    def _understand(self, stranger: _Stranger, message: Message) -> bool:
        """Take a stranger's message; return whether it is the hello of one that belongs here."""
        kind = messages.check(message, messages.OF_STRANGERS)
        if kind == "secret" and message["secret"] is (self._secret is None):
            self._miss_the_secret(message)
        elif kind == "proof" and self._secret and stranger.process is None:
            self._verify(stranger, message)
        elif kind == "hello" and (self._secret is None or stranger.process == message["hello"]):
            if message["hello"] >= message["num_processes"]:
                raise ValueError(f"hello={message['hello']} is not among num_processes={message['num_processes']}")
            return True
        else:
            raise ValueError(f"{kind} has no place here")
        return False

    def _miss_the_secret(self, message: Message) -> None:
        process = f"process {message['process_id']}"
        if self._secret:
            raise ValueError(
                f"it says that it is {process} and has no {secret.VARIABLE}; set it there to a copy of process 0's file"
            )
        self._refuse(f"{process} has {secret.VARIABLE} and process 0 has not; set it in all processes or in none")

    def _verify(self, stranger: _Stranger, message: Message) -> None:
        exchange = secret.Exchange(self._secret, stranger.nonce, message["nonce"], message["process_id"])
        if not exchange.proves(secret.MEMBER, message["proof"]):
            stranger.lines.send({"unproven": True})
            raise ValueError(
                f"it says that it is process {message['process_id']} and does not prove it: its {secret.VARIABLE} does "
                "not hold process 0's secret; give all processes of a run the same file"
            )
        stranger.process, stranger.lines.longest = message["process_id"], _STRANGER_BYTES
        stranger.lines.send({"proof": exchange.proof(secret.HUB)})
        stranger.lines.seal(exchange.key(secret.HUB), exchange.key(secret.MEMBER))

    def _turn_away(self, stranger: _Stranger, reason: str) -> None:
        self._reported += 1
        if self._reported <= _MOST_REPORTS:
            more = "" if self._reported < _MOST_REPORTS else "; others are turned away without a word"
            self._report(one_line(f"turned away {stranger.address}: {reason}{more}", 1000))
        self._dismiss(stranger)

    def _dismiss(self, stranger: _Stranger) -> None:
        self._strangers.pop(stranger.lines.socket.fileno(), None)
        stranger.lines.close()


def _listen(place: Place, patience: float) -> socket.socket:
    """Return a socket that listens on the coordinator's port: on all addresses, or on loopback where that is meant."""
    host, port = place.address
    until = time.monotonic() + patience
    while True:
        try:
            if place.is_loopback:
                return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            # The process of a run that has just ended may hold it for a moment.
            if time.monotonic() > until:
                reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
                raise UserError(
                    f"--coordinator={place.coordinator}: port {port} cannot be listened on ({reason}); end the process "
                    "that has it, or choose another port for all processes"
                ) from error
            time.sleep(0.2)
