"""Strangers, damaged lines and impostors at the port of process 0: the run's own processes meet in spite of them."""

import contextlib
import json
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagjax.errors import RunFailed, UserError
from stagjax.hosts import door, messages, secret
from stagjax.hosts import hub as hubs
from stagjax.hosts.hub import Hub
from stagjax.hosts.joining import Newcomer
from stagjax.hosts.lines import Lines
from stagjax.hosts.place import Place

KEY = bytes(range(32))
SECONDS = 60.0  # for what takes milliseconds
HELLO = {"hello": 1, "num_processes": 2, "host": "stranger", "pid": 1, "facts": {}}
DEEP = b'{"gather":' + b"[" * 100_000


class Meeting:
    """A hub in this process, its port, and what it reports."""

    def __init__(self, own_secret=KEY, count=2, timeout=SECONDS):
        self.secret, self.count, self.reports = own_secret, count, []
        self.hub = Hub(Place(0, count, "127.0.0.1:0"), own_secret, timeout, self.reports.append)
        self.hub.start()
        self.members = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hub._timeout = 0  # nobody comes late
        self.hub.fail("the test is over")
        for connection in self.members.values():
            connection.close()

    def newcomer(self, process, **changes):
        place = Place(process, self.count, f"127.0.0.1:{self.hub.port}")
        return Newcomer(
            **{"place": place, "facts": {}, "secret": self.secret, "deadline": time.monotonic() + SECONDS} | changes
        )

    def come(self, process):
        """Let a process come, in a thread that waits for the others; return it."""

        def reach():
            self.members[process], _ = self.newcomer(process).reach(print)

        thread = threading.Thread(target=reach, daemon=True)
        thread.start()
        return thread

    def wait_for(self, process):
        eventually(lambda: process in self.hub._members)

    def all_come(self, among=lambda: None):
        """Let all come, one after the other, and do something meanwhile."""
        threads = []
        for process in range(self.count):
            threads.append(self.come(process))
            if process < self.count - 1:
                self.wait_for(process)
                among()
        for thread in threads:
            thread.join(SECONDS)
        assert sorted(self.members) == list(range(self.count)), self.reports

    def run_and_part(self):
        """Let all exchange a value and part, as at the end of a run; the hub ends with them."""
        for process, lines in self.members.items():
            lines.send({"gather": "1 values", "value": process})
        for lines in self.members.values():
            assert heard(lines, "gathered")["values"] == list(range(self.count))
        for lines in self.members.values():
            lines.send({"parted": True})
        self.hub._over.wait(SECONDS)
        assert self.hub._over.is_set() and self.hub.fault is None

    def stranger(self, *said):
        connection = socket.create_connection(("127.0.0.1", self.hub.port), timeout=SECONDS)
        say(connection, *said)
        return connection


def eventually(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def say(connection, *said):
    """Say lines (bytes, or messages) to whoever may have hung up."""
    with contextlib.suppress(OSError):
        for line in said:
            connection.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")


def heard(lines, kind):
    """Return the next message of a kind."""
    lines.socket.settimeout(SECONDS)
    while True:
        for message in lines.messages():
            if kind in message:
                return message
        assert lines.fill()


def until_closed(connection):
    """Return all that comes until the other end hangs up; it must."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while come := connection.recv(1 << 16):
            data += come
    connection.close()
    return data


def is_believed(line):
    """Whether a hub without a secret takes a line for what a process of the run says: there it is."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return messages.check(json.loads(line), messages.OF_STRANGERS) in ("hello", "secret")
    return False


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SAID = [
    HELLO,
    {"proof": "0" * 64, "nonce": "1" * 64, "process_id": 1},
    {"secret": False, "process_id": 1},
    {"welcome": ["a", "b"]},
    {"ended": 5, "text": "\x1b[31mforged\nforged"},
    {"gather": "1 values", "value": 7},
    {"stop": 15},
    {"parted": True},
]


@st.composite
def hostile(draw):
    """Draw a line: a message of ours with something else in a field, plain JSON, or bytes; maybe without its end."""
    message = dict(draw(st.sampled_from(SAID)))
    message[draw(st.sampled_from(sorted(message)))] = draw(PLAIN)
    line = draw(
        st.one_of(st.just(json.dumps(message).encode()), PLAIN.map(json.dumps).map(str.encode), st.binary(max_size=50))
    )
    return line + draw(st.sampled_from([b"\n", b"\n\n", b"", b"\r\n"]))


@pytest.mark.parametrize("own_secret", [KEY, None], ids=["secret", "no secret"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.lists(hostile(), max_size=3), min_size=9, max_size=9))
def test_whatever_strangers_say_at_any_time_the_members_meet_and_run(own_secret, said):
    if own_secret is None:
        said = [[line for line in lines if not is_believed(line.strip())] for lines in said]
    with Meeting(own_secret) as meeting:
        first = [meeting.stranger(*lines) for lines in said[:2]]
        silent = meeting.stranger()

        def meanwhile():
            first.extend(meeting.stranger(*lines) for lines in said[2:4])
            for connection, lines in zip(first, said[4:], strict=False):
                say(connection, *lines)

        meeting.all_come(meanwhile)
        for connection in first:
            say(connection, *said[8], HELLO, {"ended": 5, "text": "forged"})
        meeting.run_and_part()
        for connection in [*first, silent]:
            assert b"welcome" not in until_closed(connection) and connection.fileno() == -1
        assert all(report.isprintable() for report in meeting.reports)


def test_a_process_whose_connection_has_ended_may_come_again_before_that_is_noticed():
    hub = Hub(Place(0, 2, "127.0.0.1:0"), None, SECONDS, print)  # not started: it notices nothing
    with socket.create_server(("127.0.0.1", 0)) as server:
        come = []
        for _ in range(2):
            theirs = socket.create_connection(server.getsockname())
            come.append((theirs, Lines(server.accept()[0])))
        hub._admit(HELLO, come[0][1])
        say(come[0][0], {"beat": True})
        come[0][0].close()
        eventually(come[0][1].is_hung_up)
        hub._admit(HELLO, come[1][1])
        assert hub._refusal is None and hub._members[1] is come[1][1]
        hub._admit(HELLO, come[1][1])
        assert "two processes say --process-id=1" in hub._refusal
        come[1][0].close()
    hub._door.close()


def test_who_was_there_before_the_start_gets_and_says_nothing_after_it():
    with Meeting(None) as meeting:
        strangers = [meeting.stranger(*said) for said in ([], [json.dumps(HELLO).encode()])]
        meeting.all_come()
        for connection in strangers:
            say(connection, b"\n", HELLO | {"hello": 0}, {"ended": 5, "text": "forged"}, {"stop": 15})
            assert until_closed(connection) in (b"", b'{"stagjax": "hub", "nonce": null}\n')
        assert meeting.hub._door.sources() == []
        meeting.run_and_part()


@pytest.mark.parametrize(
    "said",
    [
        *(b"\n", b"[]\n", b"[" * 100_000 + b"\n", DEEP + b"\n", b"\xff\n", b"9" * 5000 + b"\n"),
        *(HELLO | {"hello": value} for value in ([], {}, "1", None, True, -1, 1e400, 1.0, 2, 2**70)),
        *(HELLO | {"facts": value} for value in ([], {"a": []}, {"a": {"b": 1}}, None)),
        *(HELLO | {"num_processes": value} for value in ("2", [], 0, True)),
        *(HELLO | {"host": 1}, HELLO | {"pid": None}, {"hello": 1}),
    ],
    ids=lambda said: str(said)[:60],
)
def test_a_malformed_line_ends_its_connection_alone_and_is_told_in_a_line(said):
    with Meeting(None) as meeting:
        stranger = meeting.stranger(said)
        until_closed(stranger)
        (report,) = meeting.reports
        assert report.startswith("turned away 127.0.0.1 port ") and report.isprintable()
        meeting.all_come()
        meeting.run_and_part()


def test_reports_of_those_turned_away_have_an_end():
    with Meeting(None) as meeting:
        for _ in range(door._MOST_REPORTS + 5):
            until_closed(meeting.stranger(b"\x1b[31m\n"))
        assert len(meeting.reports) == door._MOST_REPORTS
        assert meeting.reports[-1].endswith("; others are turned away without a word")
        meeting.all_come()


def test_a_report_that_cannot_be_printed_ends_nothing():
    with Meeting(None) as meeting:
        meeting.hub._door._report = hubs._surely(lambda text: 1 / 0)
        until_closed(meeting.stranger(b"\n"))
        meeting.all_come()
        meeting.run_and_part()


def test_the_silent_and_the_slow_have_their_time_and_no_more(monkeypatch):
    monkeypatch.setattr(door, "STRANGER_SECONDS", 0.2)
    with Meeting() as meeting:
        silent, slow = meeting.stranger(), meeting.stranger()
        with contextlib.suppress(OSError):
            while True:
                slow.sendall(b"{")
                time.sleep(0.02)
        for stranger in (silent, slow):
            until_closed(stranger)
        eventually(lambda: len(meeting.reports) == 2)
        assert all("did not say within 0 s who it is" in report for report in meeting.reports)


@pytest.mark.parametrize("own_secret", [KEY, None], ids=["secret", "no secret"])
def test_who_does_not_come_is_named_in_time_whatever_strangers_do(own_secret):
    with Meeting(own_secret, timeout=0.5) as meeting:
        crowd = [meeting.stranger(*said) for said in ([], [b"{"], [b"[" * 1000], [b"\n"])]
        drip = meeting.stranger()

        def dripping():
            with contextlib.suppress(OSError):
                while True:
                    drip.sendall(b"{")
                    time.sleep(0.01)

        threading.Thread(target=dripping, daemon=True).start()
        with pytest.raises(UserError, match="of 2 processes: .*1 did not come within|process 0 was not found"):
            meeting.newcomer(0, deadline=time.monotonic() + 1).reach(print)
        meeting.hub._over.wait(SECONDS)
        assert meeting.hub._over.is_set() and meeting.hub.fault is None
        for connection in [*crowd, drip]:
            connection.close()


def test_many_connections_leave_room_for_the_members(monkeypatch):
    monkeypatch.setattr(door, "_MOST_STRANGERS", 2)
    with Meeting() as meeting:
        crowd = [meeting.stranger() for _ in range(20)]
        meeting.all_come(lambda: crowd.extend(meeting.stranger() for _ in range(20)))
        meeting.run_and_part()
        for stranger in crowd:
            until_closed(stranger)
        assert any("too many connect" in report for report in meeting.reports)


def test_who_has_proven_nothing_gets_a_short_line():
    with Meeting() as meeting:
        assert until_closed(meeting.stranger(b"x" * (1 << 17)))
        assert "a line of more than 1024 bytes" in meeting.reports[0]
        meeting.newcomer(0)
        meeting.all_come()


def test_facts_of_many_fields_are_not_too_long():
    facts = {f"field.{n}": "x" * 1000 for n in range(500)}
    with Meeting() as meeting:
        threads = []
        for process in range(2):
            newcomer = meeting.newcomer(process, facts=facts)
            threads.append(
                threading.Thread(target=lambda n=newcomer, p=process: meeting.members.update({p: n.reach(print)[0]}))
            )
            threads[-1].start()
        for thread in threads:
            thread.join(SECONDS)
        meeting.run_and_part()


def greeted(meeting):
    """Return a stranger's connection and the hub's nonce."""
    lines = Lines(meeting.stranger())
    return lines, heard(lines, "stagjax")["nonce"]


def proof(nonce, process=1, key=KEY, end=secret.MEMBER):
    exchange = secret.Exchange(key, nonce, "2" * 64, process)
    return {"proof": exchange.proof(end), "nonce": "2" * 64, "process_id": process}, exchange


def test_a_proof_heard_on_one_connection_is_none_on_another():
    with Meeting() as meeting:
        lines, nonce = greeted(meeting)
        genuine, exchange = proof(nonce)
        lines.send(genuine)
        assert exchange.proves(secret.HUB, heard(lines, "proof")["proof"])
        replaying, other = greeted(meeting)
        assert other != nonce
        replaying.send(genuine)
        assert heard(replaying, "unproven")
        lines.close()
        replaying.close()
        meeting.all_come()
        meeting.run_and_part()


@pytest.mark.parametrize(
    "forge",
    [
        lambda nonce: proof(nonce, key=b"other" * 7)[0],
        lambda nonce: proof(nonce, end=secret.HUB)[0],
        lambda nonce: proof(nonce)[0] | {"process_id": 0},
        lambda nonce: proof("0" * 64)[0],
    ],
    ids=["another secret", "the hub's", "another process", "another connection"],
)
def test_a_proof_that_is_none(forge):
    with Meeting() as meeting:
        lines, nonce = greeted(meeting)
        lines.send(forge(nonce))
        assert heard(lines, "unproven")
        assert b"" == until_closed(lines.socket)
        assert "does not prove it: its STAGJAX_SECRET_FILE does not hold process 0's secret" in meeting.reports[0]
        assert KEY.hex() not in meeting.reports[0]


def test_a_proof_is_of_the_process_that_says_hello_and_of_its_lines():
    with Meeting() as meeting:
        for hello, seal in ((HELLO | {"hello": 0}, True), (HELLO, False)):
            lines, nonce = greeted(meeting)
            said, exchange = proof(nonce)
            lines.send(said)
            assert heard(lines, "proof")
            if seal:
                lines.seal(exchange.key(secret.MEMBER), exchange.key(secret.HUB))
            lines.send(hello)
            assert until_closed(lines.socket) == b""
        assert "hello has no place here" in meeting.reports[0]
        assert "not written by whom it should be" in meeting.reports[1]
        meeting.all_come()
        meeting.run_and_part()


@pytest.mark.parametrize(
    "said",
    [
        *(b"x\n", b"[]\n", b"{}\n", DEEP + b"\n", {"gather": 1, "value": 1}, {"gather": "a"}, {"stop": True}),
        *(
            {"begun": -1},
            {"begun": 1e400},
            {"stop": "x"},
            {"ended": 300, "text": ""},
            {"ended": 3, "text": []},
            {"x": 1},
        ),
    ],
    ids=lambda said: str(said)[:40],
)
def test_a_member_that_says_what_no_member_says_is_lost_as_one_that_is_killed(said):
    with Meeting(None) as meeting:
        meeting.all_come()
        say(meeting.members[1].socket, said)
        assert heard(meeting.members[0], "lost")["lost"].startswith("lost process 1 on ")
        assert until_closed(meeting.members[1].socket) is not None
        meeting.members[0].send({"parted": True})
        meeting.hub._over.wait(SECONDS)
        assert meeting.hub.fault is None


@pytest.mark.parametrize("running", [False, True])
def test_a_fault_of_the_hub_itself_ends_all(monkeypatch, running):
    with Meeting(count=2) as meeting:
        if running:
            meeting.all_come()
            meeting.hub._watch = None
            for lines in meeting.members.values():
                assert heard(lines, "ended")["ended"] == 3
        else:
            monkeypatch.setattr(hubs, "disagreement", lambda *_: {}["no such fact"])
            ends = []

            def reach(newcomer):
                with contextlib.suppress(RunFailed):
                    newcomer.reach(print)
                    return
                ends.append(newcomer.place.process_id)

            threads = [threading.Thread(target=reach, args=(meeting.newcomer(process),)) for process in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SECONDS)
            assert sorted(ends) == [0, 1]
        meeting.hub._over.wait(SECONDS)
        assert "what joins the processes failed in process 0 (" in meeting.hub.fault


@pytest.mark.parametrize(
    ("hubs_own", "ours", "says"),
    [
        (
            KEY,
            None,
            r"process 0 at 127.0.0.1:\d+ has STAGJAX_SECRET_FILE and this process \(1\) has not; set it in all",
        ),
        (
            None,
            KEY,
            r"this process \(1\) has STAGJAX_SECRET_FILE and process 0 at 127.0.0.1:\d+ has not; set it in all",
        ),
        (KEY, b"x" * 32, "does not hold the secret of this process's STAGJAX_SECRET_FILE; give all processes"),
    ],
    ids=["only process 0", "only the other", "two secrets"],
)
def test_secrets_that_differ_are_named_on_both_sides(hubs_own, ours, says):
    with Meeting(hubs_own) as meeting:
        with pytest.raises(UserError, match=says):
            meeting.newcomer(1, secret=ours).reach(print)
        if hubs_own is None:  # where anybody may end the run, this does, and at once
            eventually(lambda: meeting.hub._refusal)
            assert "process 1 has STAGJAX_SECRET_FILE and process 0 has not" in meeting.hub._refusal
        else:
            eventually(lambda: meeting.reports)
            assert "STAGJAX_SECRET_FILE" in meeting.reports[0] and "process 1" in meeting.reports[0]
            meeting.all_come()
            meeting.run_and_part()
