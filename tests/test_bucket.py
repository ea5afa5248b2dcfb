"""Run directories in a bucket: a server of this machine that gcsfs and TensorStore take for Google's."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import gcsfs
import pytest

from stagjax import bucket
from stagjax.checkpoints.stored import reason
from stagjax.errors import RunFailed, UserError
from stagjax.files import directory
from stagjax.workdir import owned
from tests.compiling import environment
from tests.fake_gcs import Bucket
from tests.waits import HANG, eventually

ROOT = pathlib.Path(__file__).parent.parent
RUN = "gs://a-bucket/runs/one"


@pytest.fixture
def cloud(monkeypatch):
    cloud = Bucket()
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_HEARTBEAT_SECONDS", 0.3)
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield cloud
    gcsfs.GCSFileSystem.clear_instance_cache()
    cloud.close()


def content(cloud, name):
    return cloud.text(f"runs/one/{name}") if f"runs/one/{name}" in cloud.names() else None


def test_what_is_written_here_is_there_at_the_end(cloud):
    with bucket.mirrored(RUN) as mirror:
        (mirror.path / "metrics.jsonl").write_text("1\n")
        (mirror.path / "tensorboard").mkdir()
        (mirror.path / "tensorboard" / "events").write_bytes(b"\0\1")
        (mirror.path / "config.json.partial").write_text("half")
    assert cloud.names() == ["runs/one/metrics.jsonl", "runs/one/tensorboard/events"]
    assert cloud.objects["runs/one/tensorboard/events"][0] == b"\0\1"
    assert not mirror.path.exists()


def test_what_is_there_is_here_at_the_start(cloud):
    cloud.put("runs/one/metrics.jsonl", b"1\n")
    cloud.put("runs/one/checkpoints/10/state/large", b"0" * 100)
    cloud.put("runs/other/metrics.jsonl", b"2\n")
    with bucket.mirrored(RUN + "/") as mirror:
        assert (mirror.path / "metrics.jsonl").read_text() == "1\n"
        assert sorted(path.name for path in mirror.path.iterdir()) == ["checkpoints", "metrics.jsonl"]
        assert list((mirror.path / "checkpoints").iterdir()) == []
        with (mirror.path / "metrics.jsonl").open("a") as file:
            file.write("3\n")
    assert content(cloud, "metrics.jsonl") == "1\n3\n"
    # Nothing else was written again.
    written = [path for method, path in cloud.requests if method == "POST" and "upload" in path]
    assert not any("checkpoints" in path for path in written)


def test_a_copy_is_made_when_it_is_asked_for_and_once_a_minute(cloud, monkeypatch):
    with bucket.mirrored(RUN) as mirror:
        (mirror.path / "a").write_text("1")
        time.sleep(0.5)
        assert content(cloud, "a") is None
        mirror.sync()
        assert eventually(lambda: content(cloud, "a") == "1")
        monkeypatch.setattr(bucket, "_UPLOAD_SECONDS", 0.2)
        (mirror.path / "a").write_text("22")
        assert eventually(lambda: content(cloud, "a") == "22")


def test_what_failed_is_copied_later(cloud):
    with bucket.mirrored(RUN) as mirror:
        cloud.fault = "forbidden"
        (mirror.path / "a").write_text("1")
        mirror.sync()
        time.sleep(0.6)
        cloud.fault = None
        mirror.sync()
        assert eventually(lambda: content(cloud, "a") == "1")


def test_a_bucket_that_takes_nothing_any_more_ends_the_run(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "_FAILING_SECONDS", 0.3)
    with pytest.raises(RunFailed, match=f"could not be copied to {RUN}: OSError: the bucket is forbidden"):
        with bucket.mirrored(RUN) as mirror:
            cloud.fault = "forbidden"
            eventually(mirror.sync)
    with pytest.raises(UserError, match="cannot be used: OSError: the bucket is forbidden; see that the bucket exists"):
        with bucket.mirrored(RUN):
            raise AssertionError


def test_a_copy_that_fails_at_the_end_is_told(cloud):
    with pytest.raises(RunFailed, match="could not be copied"):
        with bucket.mirrored(RUN) as mirror:
            (mirror.path / "a").write_text("1")
            cloud.fault = "forbidden"


def test_errors_name_the_bucket_and_not_the_copy(cloud):
    with pytest.raises(UserError) as error, bucket.mirrored(RUN) as mirror:
        raise UserError(f"--workdir={mirror.path} is not good")
    assert str(error.value) == f"--workdir={RUN} is not good"


def test_errors_of_clients_end_the_run_in_words(cloud):
    with pytest.raises(RunFailed, match=f"{RUN} cannot be used any longer: OSError: the bucket is forbidden; what is"):
        with bucket.mirrored(RUN):
            cloud.fault = "forbidden"
            bucket.file_system().cat_file(f"{RUN}/a")
    cloud.fault = None
    with pytest.raises(ZeroDivisionError), bucket.mirrored(RUN):
        raise ZeroDivisionError  # a bug of ours stays one


def test_a_bucket_that_says_nothing(cloud):
    cloud.fault = "silent"
    with pytest.raises(UserError, match="does not answer within 0.3 s; see that the bucket exists"):
        bucket.answered(RUN, lambda: bucket.file_system().ls(RUN), seconds=0.3)


def test_a_bucket_that_is_not_there(cloud):
    with pytest.raises(UserError, match="gs://nowhere/run cannot be used: FileNotFoundError"):
        with bucket.mirrored("gs://nowhere/run"):
            raise AssertionError


def of_a_dead_process():
    dead = subprocess.Popen(["true"])
    dead.wait()
    return json.dumps({"mark": "x", "host": bucket.socket.gethostname(), "process": dead.pid}).encode()


@contextlib.contextmanager
def refreshing(mirror):
    ended = threading.Event()
    thread = threading.Thread(target=lambda: eventually(lambda: mirror.sync() or ended.is_set()))
    thread.start()
    yield
    ended.set()
    thread.join()


class TestLock:
    def test_one_run_at_a_time(self, cloud, monkeypatch):
        # That long a run may be held up and keep its lock; it is made to refresh it sooner.
        monkeypatch.setattr(bucket, "_HEARTBEAT_SECONDS", HANG)
        with bucket.mirrored(RUN) as mirror, refreshing(mirror):
            held = json.loads(content(cloud, ".lock"))
            assert held["process"] == os.getpid()
            with pytest.raises(UserError, match=f"--workdir={RUN} is in use by another process .*{os.getpid()}"):
                with bucket.mirrored(RUN):
                    raise AssertionError
            assert json.loads(content(cloud, ".lock")) == held
        assert content(cloud, ".lock") is None

    def test_a_lock_that_nobody_refreshes_is_taken_over(self, cloud, monkeypatch):
        cloud.put("runs/one/.lock", json.dumps({"mark": "x", "host": "elsewhere", "process": 1}).encode())
        begun = time.monotonic()
        with bucket.mirrored(RUN):
            assert json.loads(content(cloud, ".lock"))["mark"] != "x"
        assert time.monotonic() - begun > 0.9  # three heartbeats

    def test_a_lock_of_a_process_that_died_here_is_taken_at_once(self, cloud, monkeypatch):
        monkeypatch.setattr(bucket, "_HEARTBEAT_SECONDS", HANG)
        cloud.put("runs/one/.lock", of_a_dead_process())
        begun = time.monotonic()
        with bucket.mirrored(RUN):
            assert time.monotonic() - begun < HANG

    def test_of_several_that_find_a_stale_lock_one_gets_it(self, cloud, monkeypatch):
        # Whoever gets it refreshes it after five seconds, which tells the others; after fifteen they would take it.
        monkeypatch.setattr(bucket, "_HEARTBEAT_SECONDS", 5.0)
        cloud.put("runs/one/.lock", of_a_dead_process())
        inside, refused, ended = [], [], threading.Event()

        def enter():
            try:
                with bucket.mirrored(RUN):
                    inside.append(1)
                    ended.wait(HANG)
            except UserError:
                refused.append(1)

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(inside) + len(refused) == 4)
        ended.set()
        for thread in threads:
            thread.join()
        assert (len(inside), len(refused)) == (1, 3)

    def test_only_the_lock_that_was_found_stale_is_removed(self, cloud):
        cloud.put("runs/one/.lock", b"{}")
        lock = bucket.Lock(RUN, bucket.file_system())
        stale = lock._read()[1]
        cloud.put("runs/one/.lock", b'{"mark": "of another that was faster"}')
        lock._delete(stale)
        assert "faster" in content(cloud, ".lock")
        lock._delete(lock._read()[1])
        assert content(cloud, ".lock") is None

    def test_a_run_whose_lock_was_taken_stops_writing(self, cloud):
        with pytest.raises(RunFailed, match="was taken over by another run"), bucket.mirrored(RUN) as mirror:
            cloud.put("runs/one/.lock", json.dumps({"mark": "x", "host": "elsewhere", "process": 1}).encode())
            (mirror.path / "a").write_text("1")
            eventually(mirror.sync)
        assert content(cloud, "a") is None or cloud.objects["runs/one/a"][1] < cloud.generation
        assert json.loads(content(cloud, ".lock"))["mark"] == "x"

    def test_other_hosts_read_without_it(self, cloud):
        cloud.put("runs/one/config.json", b"{}")
        with bucket.mirrored(RUN), bucket.mirrored(RUN, writes=False) as mirror:
            assert (mirror.path / "config.json").read_text() == "{}"
            (mirror.path / "a").write_text("1")
            mirror.sync()
        assert content(cloud, "a") is None


def test_a_directory_of_something_else_is_refused(cloud):
    cloud.put("runs/one/photos/cat.jpg", b"")
    with pytest.raises(UserError, match=f"--workdir={RUN} is not empty and was not made by stagjax train"):
        with owned(directory(RUN)):
            raise AssertionError
    assert content(cloud, ".lock") is None


def test_local_directories_are_left_as_they_were(tmp_path):
    with owned(tmp_path / "run") as held:
        assert held.path == tmp_path / "run"
        held.sync()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert type(directory("runs/one")) is type(pathlib.Path("runs/one"))
    assert str(directory(RUN)) == RUN


def test_reasons_are_words():
    assert "forbidden" in reason(OSError("the bucket is forbidden"))


def command(cloud, *words):
    done = subprocess.run(
        [sys.executable, "-m", "stagjax", *words],
        env=environment() | cloud.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_train_resume_and_generate(cloud):
    line = ["train", "--config=experiments/stdlib.py:separate_2x3,runlocal", f"--workdir={RUN}"]
    line += ["--config.model.layers_per_stack=1", "--config.training.validation_rows=8"]
    line += [
        f"--config.training.{field}"
        for field in ("steps=6", "checkpoint_every=3", "validate_every=3", "log_every=1", "warmup_steps=1")
    ]
    done = command(cloud, *line)
    assert done.returncode == 0, done.stderr
    assert f"the run is in {RUN}" in done.stdout
    steps = [json.loads(text)["step"] for text in content(cloud, "metrics.jsonl").splitlines()]
    assert sorted(set(steps)) == list(range(7))
    assert content(cloud, ".lock") is None and content(cloud, "config.json")
    assert "runs/one/checkpoints/6/commit_success.txt" in cloud.names()
    assert any(name.startswith("runs/one/tensorboard/events") for name in cloud.names())

    # Killed after step 3: only what is there may count.
    for name in [name for name in cloud.names() if name.startswith("runs/one/checkpoints/6/")]:
        del cloud.objects[name]
    done = command(cloud, *line)
    assert done.returncode == 0 and "going on from step 3" in done.stderr + done.stdout
    steps = [json.loads(text)["step"] for text in content(cloud, "metrics.jsonl").splitlines()]
    assert sorted(set(steps)) == list(range(7))

    done = command(cloud, "generate", f"--workdir={RUN}", "--prompt=def ", "--max-new-tokens=2")
    assert done.returncode == 0 and done.stdout.startswith("def ")
