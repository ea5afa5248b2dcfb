"""A process on its way to the others, and what may answer instead of process 0: over the loopback network."""

import contextlib
import json
import socket
import threading
import time

import pytest

from stagjax.errors import RunFailed, UserError
from stagjax.hosts import joining, secret
from stagjax.hosts.joining import Newcomer
from stagjax.hosts.lines import Lines
from stagjax.hosts.place import Place

KEY = b"k" * 32
GREETING = {"stagjax": "hub", "nonce": None}


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(joining, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(joining, "_OWN_SECONDS", 0.2)
    monkeypatch.setattr(joining, "_RETRY_SECONDS", 0.01)


@contextlib.contextmanager
def answering(*answers):
    """Answer connection after connection, the last answer being that to all others, too; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer, args=(server, list(answers)), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _answer(server, answers):
    kept = []
    with contextlib.suppress(OSError):
        while True:
            lines = Lines(server.accept()[0])
            kept.append(lines)  # and so open
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            threading.Thread(target=_surely, args=(answer, lines), daemon=True).start()


def _surely(answer, lines):
    with contextlib.suppress(OSError, ValueError):
        answer(lines)


def newcomer(port, seconds=0.5, own_secret=None):
    return Newcomer(Place(1, 2, f"127.0.0.1:{port}"), {"a": "1"}, own_secret, time.monotonic() + seconds)


def said(lines, kind):
    lines.socket.settimeout(30)
    while True:
        for message in lines.messages():
            if kind in message:
                return message
        if not lines.fill():
            raise ConnectionError


def silence(lines):
    """Say nothing."""


def drip(lines):
    """Say a byte now and then, and never a whole line."""
    while True:
        lines.socket.sendall(b"{")
        time.sleep(0.02)


def chatter(lines):
    """Say what has no place there, without end."""
    while lines.send({"beat": True}):
        pass


def web(lines):
    lines.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    lines.close()


def deep(lines):
    lines.socket.sendall(b'{"stagjax":' + b"[" * 100_000 + b"\n")


def greet_and_hang_up(lines):
    lines.send(GREETING)
    said(lines, "hello")
    lines.close()


def greet_and_be_silent(lines):
    lines.send(GREETING)


@pytest.mark.parametrize(
    "answer",
    [silence, drip, chatter, web, deep, greet_and_hang_up, greet_and_be_silent],
    ids=lambda answer: answer.__name__,
)
def test_what_is_not_process_0_is_tried_again_and_given_up_in_time(soon, answer):
    with answering(answer) as port, pytest.raises(UserError, match=f"process 0 was not found at .*:{port} within"):
        newcomer(port).reach(print)


def test_who_is_sent_away_unheard_comes_again(soon):
    def welcome(lines):
        lines.send(GREETING)
        hello = said(lines, "hello")
        assert (hello["hello"], hello["num_processes"], hello["facts"]) == (1, 2, {"a": "1"})
        lines.send({"welcome": ["a", "b\x1b[31m\n"]})

    with answering(silence, web, greet_and_hang_up, welcome) as port:
        lines, hosts = newcomer(port, seconds=60).reach(print)
        lines.close()
    assert hosts == ["a", "b\\x1b[31m\\n"]


def come_in_and(then):
    def answer(lines):
        lines.send(GREETING)
        said(lines, "hello")
        lines.send({"beat": True})
        then(lines)

    return answer


@pytest.mark.parametrize("then", [chatter, drip, web, deep, Lines.close, silence], ids=lambda then: then.__name__)
def test_a_process_0_that_does_not_decide_is_not_waited_for_without_end(soon, then):
    with (
        answering(come_in_and(then)) as port,
        pytest.raises(UserError, match="ended, or was lost, while it waited for the others"),
    ):
        newcomer(port).reach(print)


@pytest.mark.parametrize(("kind", "error"), [("refused", UserError), ("ended", RunFailed)])
def test_what_process_0_says_is_shown_in_one_escaped_line(kind, error):
    text = "no\nstagjax: forged \x1b[31m"
    message = {"refused": text} if kind == "refused" else {"ended": 3, "text": text}
    with answering(come_in_and(lambda lines: lines.send(message))) as port, pytest.raises(error) as raised:
        newcomer(port, seconds=60).reach(print)
    assert str(raised.value) == r"no\nstagjax: forged \x1b[31m"


def test_the_secret_and_a_proof_of_it_do_not_come_back():
    heard = []

    def reflect(lines):
        """Ask for a proof, and give it back as one's own."""
        lines.send({"stagjax": "hub", "nonce": "1" * 64})
        heard.append(said(lines, "proof"))
        lines.send({"proof": heard[-1]["proof"]})

    with (
        answering(reflect) as port,
        pytest.raises(UserError, match="does not hold the secret of this process's STAGJAX"),
    ):
        newcomer(port, own_secret=KEY, seconds=1).reach(print)
    assert KEY.hex() not in json.dumps(heard)


def test_who_knows_the_secret_is_believed_and_nobody_else_can_speak_for_it():
    def genuine(lines, forger):
        lines.send({"stagjax": "hub", "nonce": "1" * 64})
        proof = said(lines, "proof")
        exchange = secret.Exchange(KEY, "1" * 64, proof["nonce"], proof["process_id"])
        assert exchange.proves(secret.MEMBER, proof["proof"])
        lines.send({"proof": exchange.proof(secret.HUB)})
        lines.seal(exchange.key(secret.HUB), exchange.key(secret.MEMBER))
        assert said(lines, "hello")["hello"] == 1
        lines.send({"beat": True})
        if forger:
            lines.socket.sendall(b'{"welcome": ["a", "b"]}\n')
        lines.send({"welcome": ["a", "b"]})

    with answering(lambda lines: genuine(lines, forger=False)) as port:
        lines, hosts = newcomer(port, own_secret=KEY, seconds=60).reach(print)
        lines.close()
    assert hosts == ["a", "b"]
    with (
        answering(lambda lines: genuine(lines, forger=True)) as port,
        pytest.raises(UserError, match="was lost, while"),
    ):
        newcomer(port, own_secret=KEY, seconds=60).reach(print)


def test_a_name_that_no_host_can_have():
    place = Place(1, 2, "a..b:80")
    with pytest.raises(
        UserError, match="process 0 was not found at --coordinator=a..b:80 .* none that a host can have"
    ):
        Newcomer(place, {}, None, time.monotonic()).reach(print)
