"""Lines over a socket: how long, how deep, and by whom."""

import contextlib
import json
import socket

import pytest

from stagjax.hosts.lines import Lines

ONE, TWO = {"a": 1}, {"b": [True, None, "\ud800\n"]}


@contextlib.contextmanager
def connection():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other = server.accept()[0]
        with other:
            yield one, other


@pytest.fixture
def ends():
    with connection() as (ours, theirs):
        yield Lines(ours), theirs


def come(lines, count):
    got = []
    while len(got) < count and lines.fill():
        got += lines.messages()
    return got


def test_messages_come_whole_however_they_are_cut(ends):
    lines, theirs = ends
    data = b"".join(json.dumps(message).encode() + b"\n" for message in (ONE, TWO, ONE))
    for at in range(0, len(data), 7):
        theirs.sendall(data[at : at + 7])
    theirs.close()
    assert come(lines, 4) == [ONE, TWO, ONE]
    assert not lines.fill()


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[]", b"1", b"null", b'"a"', b"{", b"nan", b"GET / HTTP/1.1\r", b"\xff\xfe", b'{"a": 1}\0'),
        *(b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"),
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda line: line[:12].decode(errors="replace"),
)
def test_what_is_no_message(ends, line):
    lines, theirs = ends
    theirs.sendall(line + b"\n")
    theirs.close()
    with pytest.raises(ValueError, match="a line "):
        come(lines, 1)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_has_an_end(ends, end):
    lines, theirs = ends
    lines.longest = 100
    message = b'{"a": "' + b"x" * 91 + b'"}'
    theirs.sendall(message + b"\n")
    assert len(message) == 100 and len(come(lines, 1)) == 1
    theirs.sendall(message[:50] + message + end)
    with pytest.raises(ValueError, match="a line of more than 100 bytes"):
        come(lines, 1)


def test_a_sealed_connection_in_both_directions(ends):
    ours, theirs = ends[0], Lines(ends[1])
    ours.seal(b"our key", b"their key")
    theirs.seal(b"their key", b"our key")
    for sender, receiver in ((ours, theirs), (theirs, ours), (ours, theirs)):
        assert sender.send(ONE) and sender.send(TWO)
        assert come(receiver, 2) == [ONE, TWO]


@pytest.mark.parametrize(
    "tampered",
    [
        lambda first, second, back: first.replace(b"1}", b"2}") + second,
        lambda first, second, back: first + first,
        lambda first, second, back: second + first,
        lambda first, second, back: second,
        lambda first, second, back: first.partition(b" ")[2],
        lambda first, second, back: b" " + first,
        lambda first, second, back: b"\xff" + first,
        lambda first, second, back: back,
    ],
    ids=["changed", "repeated", "swapped", "left out", "bare", "space", "byte", "sent back"],
)
def test_a_sealed_line_that_is_not_as_it_was_written(ends, tampered):
    lines, theirs = ends
    lines.seal(b"our key", b"their key")
    lines.send(ONE)
    back = theirs.recv(1 << 16)
    with connection() as (tap, writing):
        writer = Lines(writing)
        writer.seal(b"their key", b"our key")
        writer.send(ONE)
        writer.send(TWO)
        writing.close()
        first, second = tap.makefile("rb")
    theirs.sendall(tampered(first, second, back))
    with pytest.raises(ValueError, match="not written by whom it should be, or was changed, repeated or lost"):
        come(lines, 3)
