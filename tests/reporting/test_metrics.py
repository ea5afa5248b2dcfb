import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from stagjax.errors import RunFailed
from stagjax.reporting.metrics import MetricWriter, read_metrics


def events(workdir):
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("Q", data, position)
            found.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += 12 + length + 4
    return found


def scalars(workdir):
    """What TensorBoard keeps: a session start drops the steps read before it from its own on."""
    kept = []
    for event in events(workdir):
        if event.HasField("session_log"):
            kept = [entry for entry in kept if entry[0] < event.step]
        kept += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return kept


def test_what_is_written_is_read_and_is_on_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, {"train/loss": np.float32(2.5), "tokens": 3})
    (line,) = read_metrics(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"step": 10, "train/loss": 2.5, "tokens": 3.0}
    assert scalars(tmp_path) == [(10, "train/loss", 2.5), (10, "tokens", 3.0)]
    writer.write(20, {"train/loss": 2.0})
    writer.close()
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20]


def test_no_run_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "nothing") == []


def test_not_finite_is_valid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    writer.close()

    def reject(word):
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=reject)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)
    assert np.isnan(scalars(tmp_path)[0][2])


def write_run(workdir, steps, value, resume_step=None):
    with MetricWriter(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss": value})


def test_resume_drops_later_steps_of_the_run_before(tmp_path):
    write_run(tmp_path, [10, 20, 30, 40], 1.0)
    write_run(tmp_path, [30, 40], 2.0, resume_step=20)
    wanted = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == wanted
    assert [(step, value) for step, _, value in scalars(tmp_path)] == wanted
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_from_the_beginning_drops_all(tmp_path):
    write_run(tmp_path, [0, 10], 1.0)
    write_run(tmp_path, [0], 2.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(0, 2.0)]
    assert [(step, value) for step, _, value in scalars(tmp_path)] == [(0, 2.0)]


def test_a_half_written_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    write_run(tmp_path, [10, 20], 1.0)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]
    write_run(tmp_path, [20], 2.0, resume_step=10)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 1.0), (20, 2.0)]


FULL_DISK = """
import resource, sys
from stagjax.errors import RunFailed
from stagjax.reporting.metrics import MetricWriter
writer = MetricWriter(sys.argv[1])
writer.write(1, {"loss": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for step in range(2, 1000):
    try:
        writer.write(step, {"loss": 1.0})
    except RunFailed as error:
        writer.close()
        sys.exit(str(error))
"""


def test_a_full_disk_is_one_error_from_write(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, "2000"], capture_output=True, text=True)
    assert done.stderr == f"metrics could not be written to {tmp_path}: file too large\n"
    assert done.returncode == 1
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file, not a directory")
    with pytest.raises(RunFailed, match="metrics could not be written to .*: file exists"):
        MetricWriter(tmp_path)
