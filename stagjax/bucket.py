"""A run's directory in a bucket (gs://BUCKET/RUN): its small files kept here and copied there, and who holds it.

A bucket has neither appending nor locks of processes. So what a run appends to (metrics, TensorBoard, config, manifest)
lies in a directory of this machine; whatever has changed there is copied whole, once a minute, when the run asks for it
and at the end. Checkpoints are none of this: Orbax writes them to the bucket itself.

The lock is an object that is created only where there is none, and written anew every half minute. One that nobody has
written for as long as three of those times is left over from a run that was killed, and is taken over.
"""

import contextlib
import json
import logging
import os
import pathlib
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from stagjax.errors import RunFailed, UserError

SCHEME = "gs://"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
ANSWER_SECONDS = 60.0
"""For the first answer; gcsfs alone would wait for minutes."""
_REQUEST_SECONDS = 20.0
_UPLOAD_SECONDS = 60.0
_HEARTBEAT_SECONDS = 30.0
_FAILING_SECONDS = 600.0
T = TypeVar("T")


def is_bucket(path: Any) -> bool:
    """Return whether a path is in a bucket."""
    return os.fspath(path).startswith(SCHEME)


def absolute(path: Any) -> Any:
    """Return a path from the root; one in a bucket is, and would be taken for one below this directory."""
    return path if is_bucket(path) else pathlib.Path(path).resolve()


def file_system() -> Any:
    """Return the file system of buckets, with requests that end.

    Raises:
      UserError: gcsfs is not installed.
    """
    # Otherwise etils reads buckets by TensorFlow where that is installed, and loads it: 8 s and 650 MB.
    os.environ.setdefault("EPATH_USE_TF", "false")
    try:
        import fsspec
        import gcsfs  # noqa: F401 (fsspec loads it by name, and does not say what is missing)
    except ImportError as error:
        raise UserError("gs:// paths are read by gcsfs, which is not installed; pip install 'stagjax[gcs]'") from error
    # What it logs reaches the user as our error.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    fsspec.config.conf.setdefault("gcs", {}).setdefault("requests_timeout", _REQUEST_SECONDS)
    fsspec.config.conf.setdefault("gs", {}).setdefault("requests_timeout", _REQUEST_SECONDS)
    return fsspec.filesystem("gcs", finalize_on_close=True)


def answered(url: str, ask: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T:
    """Return what the bucket answers.

    Raises:
      UserError: it does not answer in time, refuses, or is not there.
    """
    answer: list[T] = []
    error: list[Exception] = []

    def run() -> None:
        try:
            answer.append(ask())
        except Exception as caught:
            error.append(caught)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if error and isinstance(error[0], UserError):
        raise error[0]
    if error:
        raise UserError(f"{url} cannot be used: {_words(error[0])}; {_REMEDY}") from error[0]
    if not answer:
        raise UserError(f"{url} does not answer within {seconds:g} s; {_REMEDY}")
    return answer[0]


_REMEDY = "see that the bucket exists and that this machine's account may read and write it"


class Mirror:
    """A directory of this machine that a bucket is kept equal to.

    Attributes:
      path: of the directory; files whose names begin with a dot are not copied.
    """

    def __init__(self, url: str, path: pathlib.Path, lock: "Lock | None"):
        self.path = path
        self._url, self._lock, self._files = url, lock, file_system()
        self._copied: dict[pathlib.Path, tuple[int, int]] = self._stamps()
        self._failing_since: float | None = None
        self._failure: Exception | None = None
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)

    def sync(self) -> None:
        """Ask for a copy soon, without waiting for it.

        Raises:
          RunFailed: the bucket has not taken a copy for ten minutes, or another run has taken it over.
        """
        self._wanted.set()
        if self._lock and self._lock.lost:
            raise RunFailed(f"{self._url} was taken over by another run; this one has stopped writing to it")
        if self._failing_since and time.monotonic() - self._failing_since > _FAILING_SECONDS:
            raise self._failed()

    def start(self) -> None:
        """Begin to copy in the background."""
        if self._lock:
            self._thread.start()

    def finish(self) -> None:
        """Copy what has changed and end.

        Raises:
          RunFailed: the bucket does not take it.
        """
        if not self._lock:
            return
        self._ended.set()
        self._wanted.set()
        self._thread.join(2 * ANSWER_SECONDS)
        if self._thread.is_alive() or self._failing_since:
            raise self._failed()

    def _keep_up(self) -> None:
        last = time.monotonic()
        while not self._ended.is_set():
            self._wanted.wait(_HEARTBEAT_SECONDS)
            asked = self._wanted.is_set()
            self._wanted.clear()
            due = asked or time.monotonic() - last >= _UPLOAD_SECONDS
            if self._attempt(due and not self._ended.is_set()) and due:
                last = time.monotonic()
        self._attempt(copy=True)

    def _attempt(self, copy: bool) -> bool:
        try:
            self._lock.beat()
            if copy:
                self._copy()
            self._failing_since = None
            return True
        except Exception as error:
            self._failure = error
            self._failing_since = self._failing_since or time.monotonic()
            return False

    def _copy(self) -> None:
        if self._lock.lost:
            return
        for file, stamp in self._stamps().items():
            if self._copied.get(file) != stamp:
                self._files.pipe_file(f"{self._url}/{file.relative_to(self.path).as_posix()}", file.read_bytes())
                self._copied[file] = stamp

    def _stamps(self) -> dict[pathlib.Path, tuple[int, int]]:
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file() and not file.name.startswith("."))
        stats = {file: file.stat() for file in files if not file.name.endswith(".partial")}
        return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}

    def _failed(self) -> RunFailed:
        words = _words(self._failure) if self._failure else "it does not answer"
        return RunFailed(f"metrics could not be copied to {self._url}: {words}; checkpoints that are there are whole")


@contextlib.contextmanager
def mirrored(url: str, writes: bool = True) -> Iterator[Mirror]:
    """Hold a run's directory in a bucket; what it has of small files is here at the start, and there at the end.

    Args:
      url: gs://BUCKET/RUN.
      writes: whether this process locks and writes it; the other hosts of a run only read.

    Raises:
      UserError: the bucket cannot be reached, read or written, or another run holds it.
      RunFailed: what the run left cannot be copied.
    """
    url = url.rstrip("/")
    with contextlib.ExitStack() as stack:
        files = answered(url, file_system)
        lock = None
        if writes:
            lock = Lock(url, files)
            lock.take()
            stack.callback(lock.release)
        path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stagjax-")))
        answered(url, lambda: _fetch(files, url, path), seconds=10 * ANSWER_SECONDS)
        mirror = Mirror(url, path, lock)
        mirror.start()
        try:
            yield mirror
        except BaseException as error:
            with contextlib.suppress(RunFailed):  # the run's own end is what the user must hear of
                mirror.finish()
            if isinstance(error, UserError | RunFailed):
                # The user knows the bucket's name.
                raise type(error)(str(error).replace(str(path), url)) from error
            if _is_the_buckets(error):
                raise RunFailed(
                    f"{url} cannot be used any longer: {_words(error)}; what is complete there is whole, "
                    "start again when it can"
                ) from error
            raise
        mirror.finish()


def is_dir(path: Any) -> bool:
    """Return whether a directory is there, in a bucket or not.

    Raises:
      UserError: the bucket cannot be reached or read.
    """
    if not is_bucket(path):
        return path.is_dir()
    return answered(os.fspath(path), lambda: file_system().isdir(os.fspath(path)))


@contextlib.contextmanager
def fetched(path: Any) -> Iterator[str]:
    """Yield the name of a file of this machine that holds what `path`, in a bucket or not, does."""
    if not is_bucket(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(prefix="stagjax-") as scratch:
        local = os.path.join(scratch, pathlib.PurePosixPath(os.fspath(path)).name)
        content = answered(os.fspath(path), lambda: file_system().cat_file(os.fspath(path)))
        pathlib.Path(local).write_bytes(content)
        yield local


class Lock:
    """The object by which one run at a time holds a directory of a bucket.

    Attributes:
      lost: whether another run has taken it over.
    """

    def __init__(self, url: str, files: Any):
        self.lost = False
        self._url, self._place, self._files = url, f"{url}/{LOCK}", files
        self._mark = secrets.token_hex(8)

    def take(self) -> None:
        """Take the lock, from a run that was killed if need be.

        Raises:
          UserError: a run that lives holds it, or the bucket cannot be written.
        """
        until = None
        seen = None
        while not answered(self._url, self._create):
            holder, generation = answered(self._url, self._read)
            if generation is None:
                continue
            if generation != seen:
                if seen is not None:
                    raise UserError(
                        f"--workdir={self._url} is in use by another process ({holder}); wait for it or end it"
                    )
                seen, until = generation, time.monotonic() + 3 * _HEARTBEAT_SECONDS
            if _has_died(holder) or time.monotonic() > until:
                answered(self._url, lambda stale=generation: self._delete(stale))
                continue
            time.sleep(min(1.0, _HEARTBEAT_SECONDS))

    def beat(self) -> None:
        """Show that this run lives; notice if another has the lock."""
        if self._read()[0].get("mark") != self._mark:
            self.lost = True
        if not self.lost:
            self._files.pipe_file(self._place, self._content())

    def release(self) -> None:
        """Remove the lock if it is this run's; a bucket that is gone keeps it, for others to find it stale."""
        with contextlib.suppress(Exception):
            holder, generation = answered(self._url, self._read, _REQUEST_SECONDS)
            if holder.get("mark") == self._mark:
                answered(self._url, lambda: self._delete(generation), _REQUEST_SECONDS)

    def _create(self) -> bool:
        try:
            self._files.pipe_file(self._place, self._content(), mode="create")
        except FileExistsError:
            return False
        return True

    def _read(self) -> tuple[dict[str, Any], str | None]:
        """Return what the holder wrote of itself and the object's generation; nothing and None where there is none."""
        self._files.invalidate_cache(self._url)
        try:
            generation = self._files.info(self._place)["generation"]
            holder = json.loads(self._files.cat_file(self._place))
            return holder if isinstance(holder, dict) else {}, generation
        except ValueError:
            return {}, generation  # Whatever it is, it is not this run's, and nobody refreshes it.
        except FileNotFoundError:
            return {}, None

    def _delete(self, generation: str) -> None:
        # Only what was seen: between looking and deleting, another run may have taken it over.
        bucket, _, name = self._place.removeprefix(SCHEME).partition("/")
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self._files.call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=generation)
        self._files.invalidate_cache(self._url)

    def _content(self) -> bytes:
        return json.dumps({"mark": self._mark, "host": socket.gethostname(), "process": os.getpid()}).encode()


def _has_died(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that is no more."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _fetch(files: Any, url: str, path: pathlib.Path) -> None:
    """Copy the files right in a directory of a bucket, and make directories of the names of its own."""
    files.invalidate_cache(url)
    try:
        listed = files.ls(url, detail=True)
    except FileNotFoundError:
        return
    for entry in listed:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory":
            (path / name).mkdir(exist_ok=True)
        elif name != LOCK and name:
            (path / name).write_bytes(files.cat_file(f"{url}/{name}"))


def _is_the_buckets(error: BaseException) -> bool:
    """Return whether an error is one of reaching or using a bucket, which all of these raise as they please."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & {"gcsfs", "aiohttp", "requests", "google"}) or str(error).startswith("Forbidden: ")


def _words(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line]
    return f"{type(error).__name__}{': ' + lines[-1][:160] if lines else ''}"
