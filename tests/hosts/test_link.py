"""Processes that meet, agree, stop and end together: real ones, over the loopback network, without JAX."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from stagjax.hosts import secret
from stagjax.hosts.lines import Lines
from stagjax.hosts.link import Link
from stagjax.hosts.place import Place
from tests.waits import HANG, eventually, reserved


@pytest.fixture
def run(tmp_path):
    """Return a class that starts members, which share a secret, and is rid of them at the end."""
    run = Run(secret.environment(tmp_path))
    yield run
    for process in run.processes:
        process.kill()
        process.communicate()
    run.held.close()


class Run:
    """Members of one run, at a port that is free."""

    def __init__(self, own_secret):
        self.secret = own_secret
        self.held = reserved()
        self.port = self.held.getsockname()[1]
        self.processes = []

    def start(self, process, count=2, action="gather", timeout=HANG, facts=None, coordinator=None, silence=60.0):
        coordinator = coordinator or f"127.0.0.1:{self.port}"
        arguments = (process, count, coordinator, timeout, silence, json.dumps(facts or {}), action)
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.hosts.member", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | self.secret,
            )
        )
        return self.processes[-1]

    def wait_until_joined(self):
        for process in self.processes:
            assert process.stdout.readline().startswith("joined")

    def ends(self, without=None):
        """Return (status, output lines, error lines) of all, or all but one, in the order of their start."""
        ends = []
        for process in (process for process in self.processes if process is not without):
            out, err = process.communicate(timeout=HANG)
            ends.append((process.returncode, out.splitlines(), err.splitlines()))
        return ends


def all_say(ends, status, pattern):
    """Assert that each ends with `status` and one line that holds `pattern`."""
    for end in ends:
        assert end[0] == status, ends
        assert len(end[2]) == 1 and pattern in end[2][0], ends


def test_values_of_all_in_order(run):
    for process in (2, 0, 1):
        run.start(process, 3)
    for status, out, err in run.ends():
        assert (status, err) == (0, [])
        assert out[1:] == ["[0, 10, 20]", "[{'of': 0}, {'of': 1}, {'of': 2}]"]


def test_a_member_that_is_killed_while_it_waits_may_come_again(run):
    first, killed = run.start(0, 3), run.start(1, 3)
    time.sleep(1.0)
    killed.kill()
    time.sleep(0.5)
    again, last = run.start(1, 3), run.start(2, 3)
    for process in (first, again, last):
        out, err = process.communicate(timeout=HANG)
        assert (process.returncode, "[0, 10, 20]" in out) == (0, True), err


def test_who_does_not_come_is_named(run):
    for process in (0, 2):
        run.start(process, 4, timeout=10)
    all_say(run.ends(), 2, "2 of 4 processes: 1, 3 did not come within 10 s (there: process 0 on ")


def test_process_0_does_not_come(run):
    run.start(1, timeout=1)
    all_say(run.ends(), 2, f"process 0 was not found at --coordinator=127.0.0.1:{run.port} within")


def test_an_address_of_another_machine(run):
    # TEST-NET-1 belongs to nobody: what listens here is not what is found there.
    run.start(0, coordinator=f"192.0.2.1:{run.port}", timeout=1)
    ((status, _, err),) = run.ends()
    assert status == 2
    assert "192.0.2.1" in err[0] and ("is not an address of process 0's machine" in err[0] or "not found" in err[0])


def test_a_name_that_is_not_known(run):
    run.start(1, coordinator=f"no-such-host.invalid:{run.port}", timeout=1)
    all_say(run.ends(), 2, "its name is not known")


def test_a_port_that_another_program_has(run):
    with socket.create_server(("127.0.0.1", run.port)) as other:
        answering = threading.Thread(target=_answer_like_a_web_server, args=(other,), daemon=True)
        answering.start()
        run.start(0, timeout=1)
        run.start(1, timeout=1)
        (status0, _, err0), (status1, _, err1) = run.ends()
    assert (status0, status1) == (2, 2)
    assert f"port {run.port} cannot be listened on (Address already in use)" in err0[0]
    assert "what answers there is not a process that waits for others" in err1[0]


def _answer_like_a_web_server(server):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()


def test_a_stranger_at_the_port_does_no_harm(run):
    run.start(0)

    def heard():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", run.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return True

    assert eventually(heard)
    run.start(1)
    assert [end[0] for end in run.ends()] == [0, 0]


def test_two_processes_with_one_id(run):
    run.start(0, 3)
    time.sleep(0.7)
    for process in (1, 1):
        run.start(process, 3)
    time.sleep(1.0)
    run.start(2, 3)  # is told, too, though it comes later
    all_say(run.ends(), 2, "two processes say --process-id=1: on ")


def test_another_number_of_processes(run):
    run.start(0, 3)
    run.start(1, 2)
    run.start(2, 3)
    all_say(run.ends(), 2, "--num-processes differs: 3 on process 0, 2 on process 1 on ")


def test_facts_that_differ(run):
    run.start(0, 3, facts={"jax": "0.10", "training.seed": "0"})
    run.start(1, 3, facts={"jax": "0.10", "training.seed": "0"})
    run.start(2, 3, facts={"jax": "0.12", "training.seed": "1"})
    all_say(run.ends(), 2, "differ in jax: 0.10 on processes 0-1, 0.12 on process 2 on ")


def test_data_that_differ(run):
    run.start(0, action="differ")
    run.start(1, action="differ")
    all_say(run.ends(), 2, "the processes differ in their data: hash: False on process 0 on ")


def test_all_stop_after_the_same_step(run):
    for process in range(3):
        run.start(process, 3, action="steps")
    ends = run.ends()
    assert [end[0] for end in ends] == [0, 0, 0], ends
    assert len({end[1][1] for end in ends}) == 1
    assert ends[0][1][1].startswith("stopped ") and ends[0][1][1].endswith(" 15")


def test_one_that_fails_takes_the_others_with_it(run):
    for process in range(3):
        run.start(process, 3, action="fail")
    ends = run.ends()
    assert [end[0] for end in ends] == [3, 3, 3]
    assert ends[1][2] == ["stagjax: disk full"]
    for end in (ends[0], ends[2]):
        (line,) = end[2]
        assert line.startswith("stagjax: process 1 on ") and line.endswith(": disk full; the last good checkpoint is 6")


@pytest.mark.parametrize("lost", [0, 1])
def test_one_that_is_killed_is_named_by_the_others(run, lost):
    for process in range(3):
        run.start(process, 3, action="wait")
    run.wait_until_joined()
    run.processes[lost].kill()
    ends = run.ends(without=run.processes[lost])
    all_say(ends, 3, f"stagjax: lost process {lost} on ")
    assert not any("no sign of life" in end[2][0] for end in ends)  # but at once


def test_the_last_word_is_who_was_lost(run):
    for process in range(2):
        run.start(process, action="chatter" if process == 0 else "wait")
    run.wait_until_joined()
    run.processes[1].kill()
    status, _, err = run.ends(without=run.processes[1])[0]
    assert status == 3
    assert err[-1].startswith("stagjax: lost process 1 on ") and err[-1].endswith("the last good checkpoint is 7")


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_that_gives_no_sign_of_life_is_lost(run, frozen):
    for process in range(3):
        run.start(process, 3, action="wait", silence=10.0)
    run.wait_until_joined()
    run.processes[frozen].send_signal(signal.SIGSTOP)
    ends = run.ends(without=run.processes[frozen])
    all_say(ends, 3, f"lost process {frozen} on ")
    assert all("gave no sign of life for 10 s; the last good checkpoint is 7" in end[2][0] for end in ends)


def test_a_fault_in_what_joins_them_ends_all_with_3(run):
    for process in range(2):
        run.start(process, action="break_hub")
    all_say(run.ends(), 3, "what joins the processes failed in process 0 (TypeError: ")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"lost": "lost\n\x1b[31mred"}, r"stagjax: lost\n\x1b[31mred; the last good checkpoint is 7"),
        ({"ended": 5, "text": "forged\nline"}, r"stagjax: forged\nline"),
        (
            {"until": True, "signal": 15},
            "stagjax: lost process 0 on a: it said what no process says (until=True is not ",
        ),
        (
            {"gathered": "1 x", "values": []},
            "stagjax: lost process 0 on a: it said what no process says (0 values of 2 ",
        ),
    ],
)
def test_what_process_0_says_ends_a_process_in_one_escaped_line(run, said, told):
    run.secret = {}
    with socket.create_server(("127.0.0.1", run.port)) as server:
        run.start(1, action="wait")
        hub = Lines(server.accept()[0])
        for message in ({"stagjax": "hub", "nonce": None}, {"beat": True}, {"welcome": ["a", "b"]}):
            hub.send(message)
        run.wait_until_joined()
        hub.send(said)
        ((status, _, err),) = run.ends()
        hub.close()
    assert (status, len(err)) == (said.get("ended", 3), 1) and err[0].startswith(told)


def test_without_a_secret_process_0_says_what_it_means(run):
    run.secret = {}
    for process in range(2):
        run.start(process)
    ends = run.ends()
    assert [end[0] for end in ends] == [0, 0]
    assert ends[0][1][0].startswith(
        f"no STAGJAX_SECRET_FILE: whoever reaches 127.0.0.1:{run.port} can join this run or "
    )
    assert ends[1][1][0].startswith("joined ")


def test_those_that_part_are_not_lost(run):
    for process in range(3):
        run.start(process, 3, action="leave_early")
    assert [(end[0], end[2]) for end in run.ends()] == [(0, [])] * 3


def test_no_step_begins_between_the_question_and_the_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        hub = Lines(server.accept()[0])
    link = Link(Place(1, 2, "127.0.0.1:1"), Lines(ours), ["a", "b"], hub=None, silence=60.0)
    link.open()
    try:
        assert link.stop_here(None) is None
        hub.send({"freeze": True})
        said = []
        while {"begun": 1} not in said:
            hub.fill()
            said += hub.messages()
        answers = []
        asking = threading.Thread(target=lambda: answers.append(link.stop_here(None)), daemon=True)
        asking.start()
        asking.join(0.3)
        assert answers == []
        hub.send({"until": 2, "signal": 15})
        asking.join(HANG)
        assert answers == [None]
        assert link.stop_here(None) == 15
    finally:
        link._ending.acquire()  # or the end of the connection would be the end of this process
        hub.close()
