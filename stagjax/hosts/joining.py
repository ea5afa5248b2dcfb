"""How a process meets the others: it finds process 0, both prove that they are of the run, and hear that all are there.

Everything here is bounded in time, whatever answers at the coordinator's address.
"""

import dataclasses
import os
import socket
import time

from stagjax.errors import RunFailed, UserError
from stagjax.hosts import messages, secret
from stagjax.hosts.door import Report
from stagjax.hosts.facts import Facts
from stagjax.hosts.hub import BEAT_SECONDS, SILENCE_SECONDS, Hub
from stagjax.hosts.lines import Lines, Message
from stagjax.hosts.link import Link
from stagjax.hosts.place import Place
from stagjax.printable import one_line

_RETRY_SECONDS = 0.3
_ANSWER_SECONDS = 5.0
_OWN_SECONDS = 10.0  # Process 0 needs no longer to find itself, unless its name is not known yet.
_LONGEST_TEXT = 4000
_NO_HUB = "what answers there is not a process that waits for others: another program, or a run under way"


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
      UserError: somebody did not come, is there twice, or differs; the port is taken, or the address is wrong; there is
        something wrong with the secret.
      RunFailed: process 0 failed in its part.
    """
    run_secret = secret.read()
    newcomer = Newcomer(place, facts, run_secret, time.monotonic() + timeout, silence)
    hub = Hub(place, run_secret, timeout, report, silence) if place.process_id == 0 else None
    if hub is not None:
        if run_secret is None:
            report(_open_to_all(place))
        hub.start()
    try:
        lines, hosts = newcomer.reach(report)
    except UserError as error:
        if hub is not None:
            hub.fail(str(error))
            hub.join(4 * _OWN_SECONDS)
            if hub.fault:
                raise RunFailed(hub.fault) from error
        raise
    link = Link(place, lines, hosts, hub, silence)
    link.open()
    return link


@dataclasses.dataclass(frozen=True)
class Newcomer:
    """A process on its way to the others; the fields are `join`'s, and `deadline` is of the monotonic clock."""

    place: Place
    facts: Facts
    secret: bytes | None
    deadline: float
    silence: float = SILENCE_SECONDS

    def reach(self, report: Report) -> tuple[Lines, list[str]]:
        """Find process 0, which may not have been started yet; return the connection and the names of all hosts."""
        begun = reported = time.monotonic()
        coordinator = self.place.coordinator
        while True:
            reason, reached = _NO_HUB, True
            try:
                lines = Lines(socket.create_connection(self.place.address, timeout=_ANSWER_SECONDS))
            except socket.gaierror as error:
                reason = f"its name is not known ({error.strerror})"
            except UnicodeError:
                reason = "its name is none that a host can have"
            except OSError as error:
                reason, reached = (error.strerror or str(error) or type(error).__name__).lower(), False
            else:
                hosts = self._meet(lines)
                if hosts is not None:
                    return lines, hosts
            now = time.monotonic()
            if self.place.process_id == 0 and not reached and now - begun > _OWN_SECONDS:
                raise UserError(
                    f"--coordinator={coordinator} is not an address of process 0's machine "
                    f"({socket.gethostname()}): {reason}; give one by which all hosts reach it"
                )
            if now > self.deadline:
                raise UserError(
                    f"process 0 was not found at --coordinator={coordinator} within {now - begun:.0f} s: {reason}; "
                    "see what process 0 says on its host, and whether this address and port lead to it"
                )
            if now - reported > 10:
                reported = now
                report(f"waiting for process 0 at {coordinator}: {reason}")
            time.sleep(_RETRY_SECONDS)

    def _meet(self, lines: Lines) -> list[str] | None:
        """Come in, where process 0 is; return the names of all hosts, or None where something else has answered."""
        hosts = None
        try:
            hosts = self._come_in(lines)
        except (UserError, RunFailed):
            raise
        except (ValueError, OSError):  # a web server's greeting, no greeting, the end of it
            pass
        finally:
            if hosts is None:
                lines.close()
        return hosts

    def _come_in(self, lines: Lines) -> list[str]:
        until = time.monotonic() + _ANSWER_SECONDS
        greeting = _next(lines, until)
        if messages.check(greeting, messages.OF_THE_DOOR) != "stagjax":
            raise ValueError("no greeting")
        process, nonce = self.place.process_id, greeting["nonce"]
        if (nonce is None) != (self.secret is None):
            lines.send({"secret": self.secret is not None, "process_id": process})
            has, has_not = f"process 0 at {self.place.coordinator}", f"this process ({process})"
            if nonce is None:
                has, has_not = has_not, has
            raise UserError(
                f"{has} has {secret.VARIABLE} and {has_not} has not; set it in all processes, to copies of one file, "
                "or in none"
            )
        if nonce is not None:
            self._prove(lines, nonce, until)
        lines.send(
            {
                "hello": process,
                "num_processes": self.place.num_processes,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "facts": dict(self.facts),
            }
        )
        return self._verdict(lines)

    def _prove(self, lines: Lines, nonce: str, until: float) -> None:
        """Prove to process 0 that this one is of its run, and see that it is; what is said from then on is sealed."""
        own = secret.nonce()
        exchange = secret.Exchange(self.secret, nonce, own, self.place.process_id)
        lines.send({"proof": exchange.proof(secret.MEMBER), "nonce": own, "process_id": self.place.process_id})
        answer = _next(lines, until)
        if messages.check(answer, messages.OF_THE_DOOR) not in ("proof", "unproven"):
            raise ValueError("no proof")
        if not exchange.proves(secret.HUB, answer.get("proof", "")):
            raise UserError(
                f"what waits at --coordinator={self.place.coordinator} does not hold the secret of this process's "
                f"{secret.VARIABLE}; give all processes of a run copies of one file, and each run an address of its own"
            )
        lines.seal(exchange.key(secret.MEMBER), exchange.key(secret.HUB))

    def _verdict(self, lines: Lines) -> list[str]:
        """Wait until process 0, which keeps the time, says that all have come, or why not; give signs of life."""
        come_in = False
        beats = min(BEAT_SECONDS, self.silence / 4)
        until = time.monotonic() + _OWN_SECONDS
        while True:
            try:
                now = time.monotonic()
                if now > until:
                    raise ConnectionError("it does not decide")
                lines.send(messages.BEAT)
                message = _next(lines, min(until, now + beats))
                kind = messages.check(message, messages.OF_THE_DOOR)
            except TimeoutError:
                continue
            except (ValueError, ConnectionError) as error:
                if not come_in:  # it may have been busy, and is asked again
                    raise
                raise UserError(
                    f"process 0 at {self.place.coordinator} ended, or was lost, while it waited for the others; see "
                    "what it says"
                ) from error
            come_in, until = True, self.deadline + 2 * _OWN_SECONDS
            if kind == "refused":
                raise UserError(one_line(message["refused"], _LONGEST_TEXT))
            if kind == "ended":
                raise RunFailed(one_line(message["text"], _LONGEST_TEXT))
            if kind == "welcome":
                return [one_line(host) for host in message["welcome"]]


def _next(lines: Lines, until: float) -> Message:
    """Return the next message.

    Raises:
      TimeoutError: it has not come whole by then, however much of it has.
      ConnectionError: the other end is gone.
      ValueError: what has come is no message.
    """
    while True:
        for message in lines.messages():
            return message
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        lines.socket.settimeout(left)
        if not lines.fill():
            raise ConnectionError("it closed the connection")


def _open_to_all(place: Place) -> str:
    """Return the line that says what it means to have no secret."""
    return (
        f"no {secret.VARIABLE}: whoever reaches {place.coordinator} can join this run or end it; unless that is you "
        f"alone, set {secret.VARIABLE} in all processes to copies of one file of mode 0600 by `openssl rand -hex 32`"
    )
