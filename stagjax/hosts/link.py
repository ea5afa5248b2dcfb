"""Each process's side of a run: it agrees with the others, stops with them, and ends when one of them is lost."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from stagjax.errors import UserError
from stagjax.hosts import messages
from stagjax.hosts.facts import Facts, disagreement
from stagjax.hosts.hub import BEAT_SECONDS, Hub
from stagjax.hosts.lines import Lines, Message
from stagjax.hosts.place import Place
from stagjax.printable import one_line

_OWN_SECONDS = 10.0  # for what is said last to arrive
_CONSEQUENCE_SECONDS = 2.0  # What follows from a lost process shows up before the news of it.
_PART_SECONDS = 300.0

_CLEAR = "\r\x1b[K\x1b[?25h"  # the line of a progress bar, which had hidden the cursor
_LONGEST_TEXT = 4000  # of what another process says


class Link:
    """The connection of one process to all others, by way of process 0; made by `joining.join`.

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

    def open(self) -> None:
        """Begin to listen, and to give signs of life."""
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
        """Take what process 0 says; whatever goes wrong here ends this process, which would wait for it for ever."""
        try:
            how = self._hear()
        except Exception as error:
            how = f"it said what no process says ({one_line(error, 300)})"
        self._closed.set()
        self._end(3, f"lost {self.name(0)}: {how}", lost=True)

    def _hear(self) -> str:
        """Take what process 0 says until it is lost; return how it was."""
        heard = time.monotonic()
        self._lines.socket.settimeout(self._beats)
        there = True
        while True:
            for message in self._lines.messages():
                heard = time.monotonic()
                self._take(message)
            if not there:
                return "it was killed, or its machine or network failed"
            if time.monotonic() - heard > self._silence:
                return f"it gave no sign of life for {self._silence:.0f} s"
            with contextlib.suppress(TimeoutError):
                there = self._lines.fill()

    def _take(self, message: Message) -> None:
        kind = messages.check(message, messages.OF_THE_HUB)
        if kind == "lost":
            self._end(3, message["lost"], lost=True)
        elif kind == "ended":
            self._end(message["ended"], message["text"])
        with self._changed:
            if kind == "gathered":
                if len(message["values"]) != self.place.num_processes:
                    raise ValueError(f"{len(message['values'])} values of {self.place.num_processes} processes")
                self._gathered[message["gathered"]] = message["values"]
            elif kind == "freeze":
                self._frozen = True
                self._lines.send({"begun": self._begun})
            elif kind == "until":
                self._until, self._signal = message["until"], message["signal"]
            self._changed.notify_all()

    def _beat(self) -> None:
        while self._lines.send(messages.BEAT) and not self._closed.wait(self._beats):
            pass

    def _end(self, status: int, text: str, lost: bool = False) -> None:
        """Say why, and end this process at once: whatever it waits for will not come."""
        if not self._ending.acquire(blocking=False):
            return
        # Whatever happens now, on storage that may have failed too, the end does not wait for it.
        threading.Timer(_OWN_SECONDS, os._exit, [status]).start()
        with contextlib.suppress(Exception):
            self._say_why(text, lost)
        if self._hub is not None:
            self._hub.wait_until_alone(_OWN_SECONDS)
        _exit(status)

    def _say_why(self, text: str, lost: bool) -> None:
        # Nobody else has a say from here on: not the main thread, which runs into errors that follow from this one, nor
        # JAX, which notices the end of process 0, too, and begins to abort this one with a page of its own.
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        # At once, as JAX does not wait either.
        _write(stderr, f"{_CLEAR if os.isatty(stderr) else ''}stagjax: {one_line(text, _LONGEST_TEXT)}")
        if lost and self.last_words is not None:
            with contextlib.suppress(Exception):
                _write(stderr, f"; {one_line(self.last_words())}")
        _write(stderr, "\n")

    def _leave(self, message: Message, seconds: float) -> None:
        """Send a last message and see that it arrives: a process that ends with unread data takes its own back."""
        self._lines.send(message)
        self._closed.wait(_OWN_SECONDS)
        if self._hub is not None:
            self._hub.wait_until_alone(seconds)


def _exit(status: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _write(file: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(file, text.encode())
