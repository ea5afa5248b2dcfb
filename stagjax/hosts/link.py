"""Each process's side: it joins the others, agrees with them, stops with them, and ends when one of them is lost."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from stagjax.errors import UserError
from stagjax.hosts.facts import Facts, disagreement
from stagjax.hosts.hub import BEAT_SECONDS, GREETING, SILENCE_SECONDS, Hub
from stagjax.hosts.lines import Lines, Message
from stagjax.hosts.place import Place

_RETRY_SECONDS = 0.3
_OWN_SECONDS = 10.0  # Process 0 needs no longer to find itself, unless its name is not known yet.
_CONSEQUENCE_SECONDS = 2.0  # What follows from a lost process shows up before the news of it.
_PART_SECONDS = 300.0

_CLEAR = "\r\x1b[K\x1b[?25h"  # the line of a progress bar, which had hidden the cursor

Report = Callable[[str], None]


class Link:
    """The connection of one process to all others, by way of process 0; made by `join`.

    Attributes:
      place: of this process.
      hosts: name of each process's machine.
      last_words: asked, when a process is lost, what is left of the run, e.g. which checkpoint is the last good one.
    """

    def __init__(self, place: Place, lines: Lines, hosts: list[str], hub: Hub | None, silence: float):
        self.place, self.hosts = place, hosts
        self.last_words: Callable[[], str] | None = None
        self._lines, self._hub, self._silence = lines, hub, silence
        self._beats = min(BEAT_SECONDS, silence / 4)
        self._changed = threading.Condition()
        self._gathered: dict[str, list[Any]] = {}
        self._rounds = 0
        self._asked = self._frozen = self._parted = False
        self._ending = threading.Lock()
        self._closed = threading.Event()
        self._begun = 0
        self._until: int | None = None
        self._signal: int | None = None

    def open(self, messages: list[Message]) -> None:
        """Begin to listen, to `messages` first, which have been read already."""
        for message in messages:
            self._take(message)
        threading.Thread(target=self._listen, name="link", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def gather(self, topic: str, value: Any) -> list[Any]:
        """Return the values (of plain data) that all processes give, by process; all call this, in the same order."""
        self._rounds += 1
        key = f"{self._rounds} {topic}"
        self._lines.send({"gather": key, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: key in self._gathered)
            return self._gathered.pop(key)

    def agree(self, topic: str, facts: Facts) -> None:
        """Raise `UserError` where the processes give different facts, saying who gives which."""
        all_facts = dict(enumerate(self.gather(topic, dict(facts))))
        names = {process: self.name(process) for process in all_facts}
        if text := disagreement(all_facts, names):
            raise UserError(f"the processes differ in {topic}: {text}; they must be the same everywhere")

    def name(self, process: int) -> str:
        """Return e.g. "process 1 on host-b"."""
        return f"process {process} on {self.hosts[process]}"

    def stop_here(self, signal: int | None) -> int | None:
        """Ask before each step whether all processes stop before it; return the signal that made them, or None.

        Wherever the signal comes, all stop at the same step: once one has asked, each says how many steps it has begun,
        and begins no other until the largest of these numbers is known, up to which all go on.

        Args:
          signal: that this process has caught, if any.
        """
        if signal is not None and not self._asked:
            self._asked = True
            self._lines.send({"stop": signal})
        with self._changed:
            self._changed.wait_for(lambda: not self._frozen or self._until is not None)
            if self._until is not None and self._begun >= self._until:
                return self._signal
            self._begun += 1
            return None

    def part(self) -> None:
        """Say that this process has done what the others need of it; they may go on without it.

        Process 0 stays until the others have parted, too: it is through it that they hear of each other, and what JAX
        runs in it for them ends them when it goes.
        """
        if self._ending.acquire(blocking=False):
            self._parted = True
            self._leave({"parted": True}, _PART_SECONDS)

    def fail(self, status: int, text: str, say: Callable[[], None]) -> None:
        """End this process, and all others, with `status`; a process that has parted returns from it.

        Args:
          status: of the exit.
          text: one line that the others print.
          say: prints it here, unless it only follows from another process's failure, which is told instead.
        """
        if self._parted:
            say()
            return
        time.sleep(_CONSEQUENCE_SECONDS)
        if self._ending.acquire(blocking=False):
            say()
            self._leave({"ended": status, "text": text}, _OWN_SECONDS)
            _exit(status)
        threading.Event().wait()  # the thread that hears the others is about to end the process

    def _listen(self) -> None:
        heard = time.monotonic()
        self._lines.socket.settimeout(self._beats)
        while True:
            try:
                messages = self._lines.receive()
            except TimeoutError:
                messages = []
            except ValueError:
                messages = None
            if messages is None:
                self._closed.set()
                self._end(3, f"lost {self.name(0)}: it was killed, or its machine or network failed", lost=True)
                return
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > self._silence:
                self._end(3, f"lost {self.name(0)}: it gave no sign of life for {self._silence:.0f} s", lost=True)
            for message in messages:
                self._take(message)

    def _take(self, message: Message) -> None:
        if "lost" in message:
            self._end(3, message["lost"], lost=True)
        elif "ended" in message:
            self._end(message["ended"], message["text"])
        with self._changed:
            if "gathered" in message:
                self._gathered[message["gathered"]] = message["values"]
            elif "freeze" in message:
                self._frozen = True
                self._lines.send({"begun": self._begun})
            elif "until" in message:
                self._until, self._signal = message["until"], message["signal"]
            self._changed.notify_all()

    def _beat(self) -> None:
        while self._lines.send({"beat": True}) and not self._closed.wait(self._beats):
            pass

    def _end(self, status: int, text: str, lost: bool = False) -> None:
        """Say why, and end this process at once: whatever it waits for will not come."""
        if not self._ending.acquire(blocking=False):
            return
        # Nobody else has a say from here on: not the main thread, which runs into errors that follow from this one, nor
        # JAX, which notices the end of process 0, too, and begins to abort this one with a page of its own.
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        # At once, as JAX does not wait either.
        _write(stderr, f"{_CLEAR if os.isatty(stderr) else ''}stagjax: {text}")
        # Whatever happens now, on storage that may have failed too, the end does not wait for it.
        threading.Timer(_OWN_SECONDS, os._exit, [status]).start()
        if lost and self.last_words is not None:
            with contextlib.suppress(Exception):
                _write(stderr, f"; {self.last_words()}")
        _write(stderr, "\n")
        if self._hub is not None:
            self._hub.wait_until_alone(_OWN_SECONDS)
        _exit(status)

    def _leave(self, message: Message, seconds: float) -> None:
        """Send a last message and see that it arrives: a process that ends with unread data takes its own back."""
        self._lines.send(message)
        self._closed.wait(_OWN_SECONDS)
        if self._hub is not None:
            self._hub.wait_until_alone(seconds)


def join(place: Place, facts: Facts, timeout: float, report: Report, silence: float = SILENCE_SECONDS) -> Link:
    """Meet the other processes of a run, and see that all are there and alike.

    It is done over a connection of our own, before JAX is told of the others, and to the port that JAX will use: what
    JAX does where a process is missing or another is there instead is to wait for minutes, or to abort.

    Args:
      place: of this process.
      facts: what must be the same in all.
      timeout: seconds within which all must have come.
      report: is told every now and then who is awaited.
      silence: seconds without a sign of life after which a process is lost.

    Raises:
      UserError: somebody did not come, is there twice, or differs; the port is taken, or the address is wrong.
    """
    deadline = time.monotonic() + timeout
    hub = Hub(place, timeout, report, silence) if place.process_id == 0 else None
    if hub is not None:
        hub.start()
    try:
        lines = _connect(place, facts, deadline, report, own=hub is not None)
        hosts, rest = _welcome(lines, place, deadline)
    except UserError as error:
        if hub is not None:
            hub.fail(str(error))
            hub.join()
        raise
    link = Link(place, lines, hosts, hub, silence)
    link.open(rest)
    return link


def _connect(place: Place, facts: Facts, deadline: float, report: Report, own: bool) -> Lines:
    """Reach process 0 and say who this one is; it may not have been started yet."""
    begun = reported = time.monotonic()
    while True:
        try:
            lines = Lines(socket.create_connection(place.address, timeout=5.0))
            if _is_hub(lines):
                hello = {"host": socket.gethostname(), "pid": os.getpid(), "facts": dict(facts)}
                lines.send(hello | {"process_id": place.process_id, "num_processes": place.num_processes})
                return lines
            lines.close()
            reason = "what answers there is not a process that waits for others: another program, or a run under way"
        except socket.gaierror as error:
            reason = f"its name is not known ({error.strerror})"
        except OSError as error:
            reason = (error.strerror or str(error) or type(error).__name__).lower()
            if own and time.monotonic() - begun > _OWN_SECONDS:
                raise UserError(
                    f"--coordinator={place.coordinator} is not an address of process 0's machine "
                    f"({socket.gethostname()}): {reason}; give one by which all hosts reach it"
                ) from error
        now = time.monotonic()
        if now > deadline:
            raise UserError(
                f"process 0 was not found at --coordinator={place.coordinator} within {now - begun:.0f} s: {reason}; "
                "see what process 0 says on its host, and whether this address and port lead to it"
            )
        if now - reported > 10:
            reported = now
            report(f"waiting for process 0 at {place.coordinator}: {reason}")
        time.sleep(_RETRY_SECONDS)


def _is_hub(lines: Lines) -> bool:
    """Return whether the other end says at once that it is one."""
    try:
        return lines.receive() == [GREETING]
    except (ValueError, TimeoutError):
        return False


def _welcome(lines: Lines, place: Place, deadline: float) -> tuple[list[str], list[Message]]:
    """Wait for the verdict of process 0; return the hosts of all processes, and what was said after it."""
    lines.socket.settimeout(1.0)
    while True:
        try:
            messages = lines.receive()
        except TimeoutError:
            # Process 0 keeps the time; this is for the case that it does not answer at all.
            messages = [] if time.monotonic() < deadline + 2 * _OWN_SECONDS else None
        if messages is None:
            raise UserError(
                f"process 0 at {place.coordinator} ended, or was lost, while it waited for the others; see what it says"
            )
        for number, message in enumerate(messages):
            if "refused" in message:
                raise UserError(message["refused"])
            if "welcome" in message:
                return message["welcome"], messages[number + 1 :]


def _exit(status: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _write(file: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(file, text.encode())
