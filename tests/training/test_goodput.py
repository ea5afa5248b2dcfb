"""The account of wall time: every moment in one phase, over restarts, with what was lost."""

import json
import os

import pytest

from stagjax.errors import UserError
from stagjax.training.goodput import PHASES, Goodput
from stagjax.training.watching import goodput_lines


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def account(file=None, clock=None, wall=None, sign_of_life=None):
    clock, wall = clock or Clock(), wall or Clock()
    return Goodput(file, sign_of_life, clock, wall), clock, wall


def spent(goodput):
    return {name: seconds for name, seconds in goodput.seconds().items() if seconds}


def test_every_moment_belongs_to_one_phase():
    goodput, clock, _ = account()
    clock.now += 1
    with goodput.phase("start"):
        clock.now += 2
    goodput.enter("step")
    clock.now += 4
    with goodput.phase("validation"):
        clock.now += 8
        with goodput.phase("checkpoint"):
            clock.now += 16
        clock.now += 32
    clock.now += 64
    assert spent(goodput) == {"other": 1, "start": 2, "step": 68, "validation": 40, "checkpoint": 16}
    clock.now += 1
    assert spent(goodput)["step"] == 69
    with pytest.raises(KeyError), goodput.phase("validation"):
        clock.now += 2
        raise KeyError
    clock.now += 3
    assert (spent(goodput)["validation"], spent(goodput)["step"]) == (42, 72)
    assert sum(spent(goodput).values()) == clock.now - 50.0


def test_a_run_that_goes_back_moves_what_it_undoes_to_lost():
    goodput, clock, _ = account()
    goodput.enter("step")
    clock.now += 10
    goodput.mark(4)
    clock.now += 5
    goodput.mark(8)
    for phase, seconds in (("step", 3), ("input", 2), ("validation", 1), ("checkpoint", 7), ("compile", 9)):
        with goodput.phase(phase):
            clock.now += seconds
    assert goodput.undo(8) == 6
    assert spent(goodput) == {"step": 15, "checkpoint": 7, "compile": 9, "lost": 6}
    clock.now += 1
    assert goodput.undo(4) == 6
    assert spent(goodput) == {"step": 10, "checkpoint": 7, "compile": 9, "lost": 12}
    # Nobody knows how things stood at a checkpoint without a mark.
    assert goodput.undo(2) == 0
    assert goodput.undo(0) == 10
    assert spent(goodput) == {"checkpoint": 7, "compile": 9, "lost": 22}


def test_it_goes_on_after_a_kill(tmp_path):
    file = tmp_path / "goodput.json"
    goodput, clock, wall = account(file)
    goodput.enter("step")
    clock.now += 10
    goodput.mark(4)
    clock.now += 6
    goodput.write()
    # Killed here. Ninety seconds later it is started again, from step 4.
    wall.now += 90
    goodput, clock, _ = account(file, wall=wall)
    assert spent(goodput) == {"step": 16, "down": 90}
    assert goodput.undo(4) == 6
    goodput.enter("step")
    clock.now += 1
    assert spent(goodput) == {"step": 11, "lost": 6, "down": 90}
    assert goodput.metrics()["goodput/share"] == pytest.approx(11 / 107)
    assert goodput.metrics()["goodput/lost_seconds"] == 6


def test_what_was_done_after_the_account_was_written_is_lost(tmp_path):
    file, lines = tmp_path / "goodput.json", tmp_path / "metrics.jsonl"
    goodput, clock, wall = account(file)
    clock.now += 10
    goodput.write()
    lines.write_text("a step, twenty seconds later")
    os.utime(lines, (wall.now + 20, wall.now + 20))
    wall.now += 90
    assert spent(account(file, wall=wall, sign_of_life=lines)[0]) == {"other": 10, "lost": 20, "down": 70}
    os.utime(lines, (wall.now - 99, wall.now - 99))
    assert spent(account(file, wall=wall, sign_of_life=lines)[0]) == {"other": 10, "down": 90}
    assert spent(account(file, wall=wall, sign_of_life=tmp_path / "none")[0]) == {"other": 10, "down": 90}


def test_it_is_written_when_due_only_and_a_damaged_one_is_refused(tmp_path):
    file = tmp_path / "goodput.json"
    goodput, clock, _ = account(file)
    clock.now += 29
    goodput.write(only_if_due=True)
    assert not file.exists()
    clock.now += 1
    goodput.write(only_if_due=True)
    assert json.loads(file.read_text())["seconds"]["other"] == 30
    for text in ("", "{}", '{"seconds": 3, "marks": [], "written": 0}', file.read_text()[:-9]):
        file.write_text(text)
        with pytest.raises(UserError, match="goodput.json is damaged .*; remove it to begin the account anew"):
            account(file)


def test_the_table_has_a_line_for_what_took_time():
    seconds = dict.fromkeys(PHASES, 0.0) | {"step": 6000.0, "compile": 90.0, "lost": 600.0, "input": 1.5}
    lines = goodput_lines(seconds)
    assert lines[0] == "goodput 89.7% of 1h51m wall time"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["step", "1h40m", "89.7%"],
        ["compile", "1m30s", "1.3%"],
        ["lost", "10m00s", "9.0%"],
    ]
