"""Process 0's side: it waits for all processes, compares what they say, and passes on what concerns them all.

A process's connection stays open for as long as it lives, so its end is noticed at once; a machine that is gone, or a
process that is stopped, by its silence.
"""

import contextlib
import select
import threading
import time

from stagjax.hosts import messages
from stagjax.hosts.door import Door, Report
from stagjax.hosts.facts import Facts, disagreement, ranges
from stagjax.hosts.lines import Lines, Message
from stagjax.hosts.place import Place
from stagjax.printable import one_line

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
_LINGER_SECONDS = 10.0  # For how long those that come after a failure are still told of it.
_REPORT_SECONDS = 10.0


class Hub(threading.Thread):
    """Collects the processes of a run, then carries their messages until all have gone.

    What one connection says concerns that connection alone, whatever it is; what goes wrong here ends the run.

    Args:
      place: of process 0; its port is listened on until all have come, and free again after that.
      secret: of the run; None believes everybody.
      timeout: seconds within which all must have come.
      report: is told every ten seconds who is missing, and who is turned away.
      silence: seconds without a sign of life after which a process is lost.

    Attributes:
      fault: why it has ended where it should not have.
      port: that it listens on.

    Raises:
      UserError: the port is taken.
    """

    def __init__(
        self, place: Place, secret: bytes | None, timeout: float, report: Report, silence: float = SILENCE_SECONDS
    ):
        super().__init__(name="hub", daemon=True)
        self.fault: str | None = None
        self._place, self._timeout, self._silence = place, timeout, silence
        self._report = _surely(report)
        self._beat = min(BEAT_SECONDS, silence / 4)
        self._door = Door(place, secret, min(timeout, _LINGER_SECONDS), self._refuse, self._report)
        self.port = self._door.port
        self._members: dict[int, Lines] = {}
        self._hellos: dict[int, Message] = {}
        self._heard: dict[int, float] = {}
        self._gathered: dict[str, dict[int, object]] = {}
        self._steps: dict[int, int] = {}
        self._running = False
        self._refusal: str | None = None
        self._latecomers = 0
        self._frozen: int | None = None
        self._beaten = time.monotonic()
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
        try:
            self._wait_for_all()
            if self._refusal is not None:
                self._linger()
            while self._members:
                self._attend()
                self._watch()
        except Exception as error:  # and nobody would hear of it: it is a thread's
            reason = one_line(f"{type(error).__name__}: {error}", 300)
            self.fault = f"what joins the processes failed in process 0 ({reason}); start all processes again"
            with contextlib.suppress(Exception):
                self._tell({"ended": 3, "text": self.fault})
        finally:
            self._door.close()
            for lines in self._members.values():
                lines.close()
            self._members = {}
            self._over.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everybody has been told how it ended."""
        self._over.wait(timeout)

    def _wait_for_all(self) -> None:
        begun = reported = time.monotonic()
        while self._refusal is None and not self._running:
            self._attend()
            self._watch()
            now = time.monotonic()
            if now - begun > self._timeout and not self._running:
                self._refuse(self._absence(now - begun))
            elif now - reported > _REPORT_SECONDS and not self._running:
                reported = now
                self._report(f"waiting for {self._missing()} ({now - begun:.0f} s of {self._timeout:.0f} s)")

    def _attend(self) -> None:
        """Wait a moment for connections and messages, and deal with what has come."""
        owners = {lines.socket.fileno(): (process, lines) for process, lines in self._members.items()}
        ready = select.poll()  # and not `select`, which knows the first 1024 files of a process only
        for source in (*owners, *self._door.sources()):
            ready.register(source, select.POLLIN)
        for source, _ in ready.poll(100):
            if source in owners:
                self._hear(*owners[source])
            elif come := self._door.attend(source):
                self._meet(*come)
        self._door.close_overdue()

    def _watch(self) -> None:
        """Give a sign of life to all and miss theirs, every few seconds."""
        now = time.monotonic()
        if now - self._beaten <= self._beat:
            return
        self._beaten = now
        self._tell(messages.BEAT)
        for process, heard in list(self._heard.items()):
            if now - heard > self._silence:
                self._lose(process, f"gave no sign of life for {self._silence:.0f} s")

    def _meet(self, hello: Message, lines: Lines) -> None:
        if self._refusal is None and not self._running:
            self._admit(hello, lines)
            return
        self._latecomers += 1
        if self._refusal is not None:
            lines.send({"refused": self._refusal})
        lines.close()

    def _admit(self, hello: Message, lines: Lines) -> None:
        process = hello["hello"]
        if process in self._members and self._members[process].is_hung_up():  # one that comes again
            self._lose(process, "was killed")
        if process in self._members:
            there, here = (f"{h['host']} (pid {h['pid']})" for h in (self._hellos[process], hello))
            self._refuse(f"two processes say --process-id={process}: on {there} and on {here}; give each its own")
            lines.send({"refused": self._refusal})
            lines.close()
            return
        self._members[process], self._hellos[process], self._heard[process] = lines, hello, time.monotonic()
        lines.send(messages.BEAT)  # it has come in
        count = self._place.num_processes
        if hello["num_processes"] != count:
            self._refuse(
                f"--num-processes differs: {count} on process 0, {hello['num_processes']} on {self.name(process)}; "
                "start all with the same number"
            )
        elif len(self._members) == count:
            self._begin()

    def _begin(self) -> None:
        facts: dict[int, Facts] = {process: hello["facts"] for process, hello in self._hellos.items()}
        names = {process: self.name(process) for process in self._hellos}
        if text := disagreement(facts, names):
            self._refuse(f"the processes differ in {text}; they must be the same everywhere")
            return
        self._door.close()
        self._running = True
        self._tell({"welcome": [hello["host"] for _, hello in sorted(self._hellos.items())]})

    def _hear(self, process: int, lines: Lines) -> None:
        if self._members.get(process) is not lines:  # gone since it was waited for
            return
        try:
            there = lines.fill()
            self._heard[process] = time.monotonic()
            for message in lines.messages():
                self._pass_on(process, message)
                if process not in self._members:
                    return
            if not there:
                self._lose(process, "was killed, or its machine or network failed")
        except Exception as error:  # whatever it has said, the others are to hear that it is gone
            self._lose(process, f"said what no process says ({one_line(error, 300)})")

    def _pass_on(self, process: int, message: Message) -> None:
        kind = messages.check(message, messages.OF_MEMBERS)
        if not self._running and kind != "beat":
            raise ValueError(f"{kind} before all have come")
        if kind == "gather":
            values = self._gathered.setdefault(message["gather"], {})
            values[process] = message["value"]
            if len(values) == self._place.num_processes:
                del self._gathered[message["gather"]]
                self._tell({"gathered": message["gather"], "values": [values[n] for n in range(len(values))]})
        elif kind == "stop" and self._frozen is None:
            self._frozen = message["stop"]
            self._tell({"freeze": True})
        elif kind == "begun" and self._frozen is not None:
            self._steps[process] = message["begun"]
            if len(self._steps) == self._place.num_processes:
                self._tell({"until": max(self._steps.values()), "signal": self._frozen})
        elif kind == "parted":
            self._forget(process)
        elif kind == "ended":
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

    def _missing(self) -> str:
        missing = sorted(set(range(self._place.num_processes)) - set(self._members))
        return f"{len(missing)} of {self._place.num_processes} processes: {ranges(missing)}"

    def _absence(self, seconds: float) -> str:
        there = ", ".join(self.name(process) for process in sorted(self._members)) or "nobody"
        return (
            f"{self._missing()} did not come within {seconds:.0f} s (there: {there}); see what they say on their hosts "
            f"and whether these reach {self._place.coordinator}"
        )


def _surely(report: Report) -> Report:
    """Return `report`, with which nothing ends: who is told may have closed its terminal."""

    def tell(text: str) -> None:
        with contextlib.suppress(Exception):
            report(text)

    return tell
