"""Process 0's side: it waits for all processes, compares what they say, and passes on what concerns them all.

A process's connection stays open for as long as it lives, so its end is noticed at once; a machine that is gone, or a
process that is stopped, by its silence.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from stagjax.errors import UserError
from stagjax.hosts.facts import Facts, disagreement, ranges
from stagjax.hosts.lines import Lines, Message
from stagjax.hosts.place import Place

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
GREETING = {"stagjax": "hub"}
_LINGER_SECONDS = 10.0  # For how long those that come after a failure are still told of it.
_REPORT_SECONDS = 10.0


class Hub(threading.Thread):
    """Collects the processes of a run, then carries their messages until all have gone.

    Args:
      place: of process 0; its port is listened on until all have come, and free again after that.
      timeout: seconds within which all must have come.
      report: is told every ten seconds who is missing.
      silence: seconds without a sign of life after which a process is lost.

    Raises:
      UserError: the port is taken.
    """

    def __init__(self, place: Place, timeout: float, report: Callable[[str], None], silence: float = SILENCE_SECONDS):
        super().__init__(name="hub", daemon=True)
        self._place, self._timeout, self._report, self._silence = place, timeout, report, silence
        self._beat = min(BEAT_SECONDS, silence / 4)
        self._listener: socket.socket | None = _listen(place, min(timeout, _LINGER_SECONDS))
        self._unknown: list[Lines] = []
        self._members: dict[int, Lines] = {}
        self._hellos: dict[int, Message] = {}
        self._heard: dict[int, float] = {}
        self._gathered: dict[str, dict[int, object]] = {}
        self._running = False
        self._refusal: str | None = None
        self._latecomers = 0
        self._frozen: int | None = None
        self._over = threading.Event()

    def fail(self, text: str) -> None:
        """Give up before all have come: whoever is waiting, or comes now, is told `text`."""
        self._refuse(text)

    def wait_until_alone(self, seconds: float) -> None:
        """Wait until no process but this one is connected, or until the time is up."""
        until = time.monotonic() + seconds
        while set(self._members) - {0} and time.monotonic() < until:
            time.sleep(0.02)

    def name(self, process: int) -> str:
        """Return e.g. "process 1 on host-b"."""
        return f"process {process} on {self._hellos[process]['host']}"

    def run(self) -> None:
        """Wait for all; then pass messages on. The thread ends with the last connection."""
        begun = time.monotonic()
        reported, beaten = begun, begun
        while self._refusal is None and not self._running:
            self._attend()
            now = time.monotonic()
            if now - begun > self._timeout and not self._running:
                self._refuse(self._absence(now - begun))
            elif now - reported > _REPORT_SECONDS and not self._running:
                reported = now
                self._report(f"waiting for {self._missing()} ({now - begun:.0f} s of {self._timeout:.0f} s)")
        if self._refusal is not None:
            self._linger()
        while self._members:
            self._attend()
            if time.monotonic() - beaten > self._beat:
                beaten = time.monotonic()
                self._tell({"beat": True})
                for process, heard in list(self._heard.items()):
                    if beaten - heard > self._silence:
                        self._lose(process, f"gave no sign of life for {self._silence:.0f} s")
        self._over.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everybody has been told how it ended."""
        self._over.wait(timeout)

    def _attend(self) -> None:
        """Wait a moment for connections and messages, and deal with what has come."""
        owners = {lines.socket.fileno(): process for process, lines in self._members.items()}
        unknown = {lines.socket.fileno(): lines for lines in self._unknown}
        listening = self._listener.fileno() if self._listener else None
        ready = select.poll()  # and not `select`, which knows the first 1024 files of a process only
        for source in (*owners, *unknown, *([] if listening is None else [listening])):
            ready.register(source, select.POLLIN)
        for source, _ in ready.poll(100):
            if source == listening:
                with contextlib.suppress(OSError):
                    self._unknown.append(Lines(self._listener.accept()[0]))
                    # So that whoever connects knows that it is not another program that has this port.
                    self._unknown[-1].send(GREETING)
            elif source in unknown:
                self._greet(unknown[source])
            elif owners[source] in self._members:
                self._hear(owners[source], self._members[owners[source]])

    def _greet(self, lines: Lines) -> None:
        """Deal with what somebody says who has not said yet who it is."""
        try:
            messages = lines.receive()
        except (ValueError, TimeoutError):
            messages = None
        if messages == []:
            return
        self._unknown.remove(lines)
        hello = messages[0] if messages else {}
        if not {"process_id", "num_processes", "host", "pid", "facts"} <= set(hello):
            lines.close()  # a port scanner, or a health check
            return
        if self._refusal is None:
            self._admit(hello, lines)
        else:
            self._latecomers += 1
            lines.send({"refused": self._refusal})
            lines.close()

    def _admit(self, hello: Message, lines: Lines) -> None:
        process = hello["process_id"]
        if process in self._members:
            there, here = (f"{h['host']} (pid {h['pid']})" for h in (self._hellos[process], hello))
            self._refuse(f"two processes say --process-id={process}: on {there} and on {here}; give each its own")
            lines.send({"refused": self._refusal})
            lines.close()
            return
        self._members[process], self._hellos[process], self._heard[process] = lines, hello, time.monotonic()
        if hello["num_processes"] != self._place.num_processes:
            self._refuse(
                f"--num-processes differs: {self._place.num_processes} on process 0, {hello['num_processes']} on "
                f"{self.name(process)}; start all with the same number"
            )
        elif len(self._members) == self._place.num_processes:
            self._begin()

    def _begin(self) -> None:
        facts: dict[int, Facts] = {process: hello["facts"] for process, hello in self._hellos.items()}
        names = {process: self.name(process) for process in self._hellos}
        if text := disagreement(facts, names):
            self._refuse(f"the processes differ in {text}; they must be the same everywhere")
            return
        self._stop_listening()
        self._running = True
        self._tell({"welcome": [hello["host"] for _, hello in sorted(self._hellos.items())]})

    def _hear(self, process: int, lines: Lines) -> None:
        try:
            messages = lines.receive()
        except (ValueError, TimeoutError):
            messages = None
        if messages is None:
            self._lose(process, "was killed, or its machine or network failed")
            return
        self._heard[process] = time.monotonic()
        for message in messages:
            self._pass_on(process, message)

    def _pass_on(self, process: int, message: Message) -> None:
        if "gather" in message:
            values = self._gathered.setdefault(message["gather"], {})
            values[process] = message["value"]
            if len(values) == self._place.num_processes:
                del self._gathered[message["gather"]]
                self._tell({"gathered": message["gather"], "values": [values[n] for n in range(len(values))]})
        elif "stop" in message and self._frozen is None:
            self._frozen = message["stop"]
            self._tell({"freeze": True})
        elif "begun" in message:
            begun = self._gathered.setdefault("begun", {})
            begun[process] = message["begun"]
            if len(begun) == self._place.num_processes:
                self._tell({"until": max(begun.values()), "signal": self._frozen})
        elif "parted" in message:
            self._forget(process)
        elif "ended" in message:
            text = f"{self.name(process)}: {message['text']}"
            self._forget(process)
            self._tell({"ended": message["ended"], "text": text})

    def _lose(self, process: int, how: str) -> None:
        lines = self._members.get(process)
        self._forget(process)
        if lines is None or self._refusal is not None:
            return
        if self._running:
            self._tell({"lost": f"lost {self.name(process)}: it {how}"})
        else:
            # Killed while it waited; started again it is welcome.
            self._hellos.pop(process, None)

    def _forget(self, process: int) -> None:
        lines = self._members.pop(process, None)
        self._heard.pop(process, None)
        if lines is not None:
            lines.close()

    def _tell(self, message: Message) -> None:
        for lines in list(self._members.values()):
            lines.send(message)

    def _refuse(self, text: str) -> None:
        if self._refusal is None and not self._running:
            self._refusal = text

    def _linger(self) -> None:
        """Tell everybody why it ends, those too that come a little later."""
        self._tell({"refused": self._refusal})
        missing = self._place.num_processes - len(self._hellos)
        for process in list(self._members):
            self._forget(process)
        until = time.monotonic() + min(_LINGER_SECONDS, self._timeout)
        while self._latecomers < missing and time.monotonic() < until:
            self._attend()
        for lines in self._unknown:
            lines.close()
        self._stop_listening()

    def _missing(self) -> str:
        missing = sorted(set(range(self._place.num_processes)) - set(self._members))
        return f"{len(missing)} of {self._place.num_processes} processes: {ranges(missing)}"

    def _absence(self, seconds: float) -> str:
        there = ", ".join(self.name(process) for process in sorted(self._members)) or "nobody"
        return (
            f"{self._missing()} did not come within {seconds:.0f} s (there: {there}); see what they say on their hosts "
            f"and whether these reach {self._place.coordinator}"
        )

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


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
                reason = os.strerror(error.errno or 0)
                raise UserError(
                    f"--coordinator={place.coordinator}: port {port} cannot be listened on ({reason}); end the process "
                    "that has it, or choose another port for all processes"
                ) from error
            time.sleep(0.2)
