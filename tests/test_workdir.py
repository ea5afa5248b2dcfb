"""A run's directory: whose it is, also on several hosts, and that a kill at any moment leaves it usable."""

import dataclasses
import json
import os
import pathlib

import jax
import pytest

from stagjax import distributed, files, workdir
from stagjax.checkpoints.origin import read_metadata
from stagjax.checkpoints.saving import Checkpoints
from stagjax.cli import main
from stagjax.config import Config
from stagjax.data.manifest import Manifest
from stagjax.errors import UserError
from stagjax.experiment import load_config
from stagjax.exporting import convert_model, import_model
from stagjax.training.loop import train

MANIFEST = Manifest("jsonl", "small", "f0", 256, 5, 2, 20, "c0", "r0", 1, 10, "c1", "r1")


class Killed(BaseException):
    """A kill between two system calls."""


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


@pytest.fixture
def config(tmp_path) -> Config:
    (tmp_path / "small.model").write_bytes(b"pieces")
    return load_config(
        "experiments/stdlib.py:separate_2x3", [f"data.vocabulary={tmp_path}/small.model", "model.vocab_size=512"]
    )


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_run_killed_while_it_claims_its_directory_starts_again(tmp_path, monkeypatch, config, moment):
    run = tmp_path / "run"
    calls = []

    def killing(function):
        def call(source, target):
            # Half of the moments are before a file gets its name, half after it.
            calls.append(target)
            if moment == 2 * len(calls) - 1:
                raise Killed
            function(source, target)
            if moment == 2 * len(calls):
                raise Killed

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing(os.replace))
        with pytest.raises(Killed), workdir.owned(run):
            workdir.claim(run, config, MANIFEST)
    whole = (run / "config.json").exists()
    assert whole == (moment == 6)

    # What was not yet claimed is claimed by another experiment too, and then holds nothing of the first one.
    (tmp_path / "small.model").write_bytes(b"other pieces")
    other = dataclasses.replace(MANIFEST, vocabulary_fingerprint="f1")
    if whole:
        with pytest.raises(UserError, match="vocabulary_fingerprint"), workdir.owned(run):
            workdir.claim(run, config, other)
        return
    with workdir.owned(run):
        workdir.claim(run, config, other)
    assert (run / "vocabulary.model").read_bytes() == b"other pieces"
    with workdir.owned(run):
        workdir.claim(run, config, other)


def test_what_looks_claimed_is_foreign_without_the_lock_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty and was not made by stagjax train"), workdir.owned(run):
        pass
    assert [path.name for path in run.iterdir()] == ["manifest.json"]


def test_a_run_without_its_config_is_not_foreign(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"config.json is missing, which says what the run is; put a copy of it back"):
        with workdir.owned(tmp_path):
            pass


def test_only_the_rates_of_an_earlier_build_are_taken_over(tmp_path, config):
    assert workdir.resumed(tmp_path, config) is config
    stored = config.to_dict()
    del stored["training"]["schedule"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert workdir.resumed(tmp_path, config).training.schedule == "cosine_from_zero"
    seeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=1))
    with pytest.raises(UserError, match="1 differing: training.seed: 0 -> 1; use a new"):
        workdir.resumed(tmp_path, seeded)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert workdir.resumed(tmp_path, config) == config
    old = dataclasses.replace(config, training=dataclasses.replace(config.training, schedule="cosine_from_zero"))
    with pytest.raises(UserError, match="training.schedule: 'cosine' -> 'cosine_from_zero'"):
        workdir.resumed(tmp_path, old)


@pytest.mark.parametrize("name", ["[1]", "lr[1e-3]", "a*", "a?/b", "a\\b", "gs:", "x gs:/y", "\udcff", "~/run"])
def test_a_name_that_checkpoints_cannot_be_kept_under_is_refused_before_anything_is_made(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda place: train(None, pathlib.Path(place)),
        lambda place: import_model(tmp_path, pathlib.Path(place)),
        lambda place: convert_model(tmp_path, pathlib.Path(place), to="shared"),
        lambda place: main(["train", "--config=none", f"--workdir={place}"]),
    ):
        try:
            assert use(name) == 2
        except UserError as error:
            assert "in its path; " in str(error)
    if name != "~/run":
        with pytest.raises(UserError, match="in its path; give another directory"):
            files.check_place(f"gs://bucket/{name}", "--workdir")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_which_a_bad_name_is_the_working_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "[1]").mkdir()
    monkeypatch.chdir(tmp_path / "[1]")
    with pytest.raises(UserError, match=r"/\[1\]/run' has \[ in its path"), workdir.owned(pathlib.Path("run")):
        pass
    files.check_place("gs://bucket/run", "--workdir")


def test_what_has_moved_to_such_a_place_is_not_called_damaged(tmp_path):
    (tmp_path / "[1]" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"/\[1\]' has \[ in its path; rename what has moved there"):
        read_metadata(tmp_path / "[1]")


def test_any_other_name_keeps_what_is_saved_in_it(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    odd = "50% #1 {a,b} gs:x ~ \u65e5\u672c\n;$HOME 'x'"
    for place, path in ((tmp_path / odd, tmp_path / odd), (tmp_path / "link" / ".." / "up", tmp_path / "up")):
        with workdir.owned(place):
            checkpoints = Checkpoints(place, keep_last=1)
            checkpoints.save(1, {"params": {"x": jax.numpy.arange(3.0)}}, {}, {}, 1.0)
            checkpoints.close()
        assert (path / "checkpoints" / "1").is_dir()
        read, _ = Checkpoints(path, keep_last=1, read_only=True).restore_params("best")
        assert read["x"].tolist() == [0, 1, 2]
