"""The rules of restarts, as tables."""

import pytest

from tpu.restarts import Budget, Verdict, WorkerState, judge, restartable


def states(*ends):
    """Return workers that ended with (status, time), or run (None)."""
    return [WorkerState(f"worker {n}", *(end or (None,))) for n, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (75, Verdict.RESTART),
        (128 + 9, Verdict.RESTART),
        (128 + 15, Verdict.RESTART),
        (128 + 6, Verdict.RESTART),
        (1, Verdict.STOP),
        (2, Verdict.STOP),
        (3, Verdict.STOP),
        (127, Verdict.STOP),
        (128, Verdict.STOP),
        (130, Verdict.STOP),  # Ctrl-C: a person said stop
        (255, Verdict.STOP),
    ],
)
def test_the_status_decides(status, verdict):
    assert judge(states(None, (status, 1.0)))[0] is verdict


def test_the_first_to_fail_decides():
    killed_first = states((3, 20.0), (137, 10.0), (3, 20.1))
    verdict, first = judge(killed_first)
    assert verdict is Verdict.RESTART and first.name == "worker 1"
    failed_first = states((3, 10.0), (134, 10.1))
    assert judge(failed_first)[0] is Verdict.STOP


def test_done_only_when_all_are():
    assert judge(states((0, 1.0), None))[0] is Verdict.WAIT
    assert judge(states((0, 1.0), (0, 2.0)))[0] is Verdict.DONE
    assert judge(states((0, 1.0), (75, 2.0)))[0] is Verdict.RESTART


def test_the_user_may_add_statuses():
    assert judge(states((3, 1.0)), also=[3])[0] is Verdict.RESTART
    assert 3 in restartable([3]) and 3 not in restartable() and 130 not in restartable()


def test_the_pause_doubles_and_restarts_run_out():
    budget = Budget(max_restarts=3, backoff=10.0, max_backoff=25.0)
    assert [budget.next_pause(lasted=1.0) for _ in range(4)] == [10.0, 20.0, 25.0, None]


def test_a_long_attempt_begins_a_new_row():
    budget = Budget(max_restarts=2, backoff=10.0, healthy_after=600.0)
    assert [budget.next_pause(1.0), budget.next_pause(1.0), budget.next_pause(600.0)] == [10.0, 20.0, 10.0]
    assert budget.next_pause(599.0) == 20.0
    assert budget.next_pause(599.0) is None


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (WorkerState("worker 0"), "worker 0 is running"),
        (WorkerState("worker 0", 75), "worker 0 ended with 75 (preempted and saved)"),
        (WorkerState("worker 0", 137), "worker 0 ended with 137 (signal 9)"),
        (WorkerState("worker 0", 99), "worker 0 ended with 99 (not a status of stagjax)"),
        (WorkerState("pile", 137, note="its machines are gone"), "pile ended with 137 (its machines are gone)"),
    ],
)
def test_what_is_said(state, text):
    assert str(state) == text
