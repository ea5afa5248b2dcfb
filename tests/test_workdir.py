"""A run's directory on several hosts: process 0 holds it, and it is the same for all."""

import jax
import pytest

from stagjax import distributed, workdir
from stagjax.errors import UserError


@pytest.fixture
def two_processes(monkeypatch):
    """Make this process the first of two; return a list of the marks in the other's directory, by turns."""
    answers = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda topic, value: [value, answers.pop(0)])
    monkeypatch.setattr(distributed, "process_name", lambda process: f"process {process} on b")
    return answers


def test_the_directory_is_the_same_for_all(tmp_path, two_processes):
    two_processes += ["what process 1 says here does not count", True]
    with workdir.owned(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text()


def test_another_directory_of_the_same_name_is_refused(tmp_path, two_processes):
    two_processes += ["", False]
    with pytest.raises(UserError, match="is not the directory of process 0 for process 1 on b; give one on"):
        with workdir.owned(tmp_path / "run"):
            raise AssertionError("it was not refused")


def test_a_mark_is_that_of_this_start(tmp_path):
    marks = []
    for _ in range(2):
        with workdir.owned(tmp_path):
            marks.append(workdir._mark(tmp_path))
    assert len(set(marks)) == 2
    assert workdir._mark(tmp_path / "elsewhere") is None


def test_a_second_run_is_refused_and_leaves_the_mark(tmp_path):
    with workdir.owned(tmp_path):
        mark = workdir._mark(tmp_path)
        with pytest.raises(UserError, match="is in use by another process"), workdir.owned(tmp_path):
            pass
        assert workdir._mark(tmp_path) == mark


def test_other_processes_take_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with workdir.owned(tmp_path), workdir.owned(tmp_path):
        assert list(tmp_path.iterdir()) == []
