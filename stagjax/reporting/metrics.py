"""Metrics of a run: one JSON line a step in `metrics.jsonl`, and the same values for TensorBoard."""

import contextlib
import io
import json
import math
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from stagjax.errors import RunFailed, UserError

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends to `WORKDIR/metrics.jsonl` and to an event file in `WORKDIR/tensorboard`, on disk when `write` returns.

    A line is `{"step": 10, "time": 1700000000.0, "train/loss": 2.3}`, with time in seconds since 1970. What is not
    finite is null in the line, for JSON has no word for it, and itself in the event file.

    Args:
      workdir: directory of the run.
      resume_step: the step that a resumed run goes on from, None for a run from the beginning; what an earlier run
        wrote for later steps is dropped, so that no step occurs twice.

    Raises:
      RunFailed: the files cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int | None = None):
        self._workdir = pathlib.Path(workdir)
        self._lines = None
        self._events = None
        self._open(0 if resume_step is None else resume_step + 1)

    def _open(self, first_step: int) -> None:
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            _cut(self._workdir / FILE, first_step)
            # Unbuffered, so that a line which a full disk refuses is not tried again at exit.
            self._lines = (self._workdir / FILE).open("ab", buffering=0)
            self._events = _EventFile(self._workdir / "tensorboard", first_step)
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        """Return the writer, which the end of the block closes."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close both files."""
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the metrics of one step.

        Args:
          step: optimizer steps done.
          metrics: name, e.g. "train/loss", to a scalar (Python, NumPy or JAX).

        Raises:
          RunFailed: the disk is full or gone.
        """
        now = time.time()
        values = {name: float(value) for name, value in metrics.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            _write_all(self._lines, f"{json.dumps({'step': int(step), 'time': round(now, 3), **line})}\n".encode())
            self._events.write(now, int(step), values)
        except OSError as error:
            raise self._failure(error) from error

    def rewind(self, step: int) -> None:
        """Drop what was written for steps after `step`, as a run that resumes from it does; raise as `write` does."""
        self.close()
        self._open(step + 1)

    def close(self) -> None:
        """Close both files; closing twice, or after a failure, does nothing.

        Raises:
          RunFailed: the disk is full or gone.
        """
        try:
            for file in (self._lines, self._events):
                if file is not None:
                    file.close()
        except OSError as error:
            raise self._failure(error) from error
        self._lines = self._events = None

    def _failure(self, error: OSError) -> RunFailed:
        # Closed here, or Python would try to write the rest at exit and print that it failed.
        for file in (self._lines, self._events):
            with contextlib.suppress(OSError, AttributeError):
                file.close()
        self._lines = self._events = None
        return RunFailed(f"metrics could not be written to {self._workdir}: {os.strerror(error.errno or 0).lower()}")


class NoMetrics:
    """Stands for a `MetricWriter` in all processes of a run but the first: metrics are the same everywhere."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to close."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write nothing."""

    def rewind(self, step: int) -> None:
        """Drop nothing."""


class _EventFile:
    """A TensorBoard event file, written when it is asked to be.

    tensorboardX's SummaryWriter hands events to a thread, where an error (a full disk) ends in a traceback that
    training never learns of. Its RecordWriter writes the same file without the thread.
    """

    def __init__(self, directory: pathlib.Path, first_step: int):
        # Imported here because tensorboardX imports PyTorch where that is installed, and readers need neither.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._messages = event_pb2
        directory.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{time.time_ns()}"
        self._records = RecordWriter(str(directory / name))
        self._add(file_version="brain.Event:2")
        # A start makes TensorBoard drop what it has read for this step and later ones.
        self._add(step=first_step, session_log={"status": event_pb2.SessionLog.START})
        self._records.flush()

    def write(self, now: float, step: int, values: Mapping[str, float]) -> None:
        summary = {"value": [{"tag": name, "simple_value": value} for name, value in values.items()]}
        self._add(wall_time=now, step=step, summary=summary)
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: Any) -> None:
        event = self._messages.Event(**{"wall_time": time.time(), **fields})
        self._records.write(event.SerializeToString())


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of `WORKDIR/metrics.jsonl`; no file is no lines, and a half-written last line is left out."""
    file = pathlib.Path(workdir) / FILE
    if not file.exists():
        return []
    return [values for values, _ in _whole_lines(file)]


def _whole_lines(file: pathlib.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the values of each line and the line itself; a killed process leaves a last one without its end.

    Raises:
      UserError: the file cannot be read, or a line is none of metrics.
    """
    remedy = "correct it, or move the file away"
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; {remedy}") from error
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            values["step"] < 0  # noqa: B015 (a number, which another type is not compared with)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}:{number} is no line of metrics; {remedy}") from error
        yield values, line


def _cut(file: pathlib.Path, first_step: int) -> None:
    if not os.path.lexists(file):
        return
    kept = [line + b"\n" for values, line in _whole_lines(file) if values["step"] < first_step]
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb", buffering=0) as out:
        _write_all(out, b"".join(kept))
    temporary.replace(file)


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    while data:
        # Just before the disk is full a write takes a part; the next one raises.
        data = data[file.write(data) :]
