"""Shards prepared in processes of their own, which end with the process that started them, however that ends."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stagjax.data.prepare_shard import Job, prepare_shard
from stagjax.data.receipts import Receipt
from stagjax.data.vocabulary import Vocabulary, load_vocabulary
from stagjax.errors import RunFailed

_POLL = 0.2  # Seconds between looks at the workers.


def prepare_shards(
    jobs: Sequence[Job], vocabulary: str, processes: int, advance: Callable[[int], None]
) -> Iterator[tuple[Receipt, float]]:
    """Prepare shards, and yield their receipts as they come, each with the processor time that it took, in seconds.

    Args:
      jobs: at least one.
      vocabulary: as `load_vocabulary` takes it.
      processes: that work at the same time, each on one shard after the other.
      advance: called several times a second with the bytes of the sources that were read so far.

    Raises:
      RunFailed: as `prepare_shard`, or a worker died.
    """
    # Processes are not forked: threads of libraries do not survive that.
    context = multiprocessing.get_context("spawn")
    progress = context.Array("Q", len(jobs), lock=False)
    executor = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(jobs)), context, initializer=_start_worker, initargs=(vocabulary, progress)
    )
    try:
        with _ignoring_interrupts():
            # The largest first, so that none is left alone at the end.
            order = sorted(range(len(jobs)), key=lambda number: -jobs[number].shard.size)
            pending = {executor.submit(_run, number, jobs[number]) for number in order}
        while pending:
            ended, pending = concurrent.futures.wait(pending, _POLL, concurrent.futures.FIRST_COMPLETED)
            advance(sum(progress))
            yield from (future.result() for future in ended)
    except concurrent.futures.BrokenExecutor as error:
        raise RunFailed(
            "a worker process died (out of memory, or killed); start again, perhaps with fewer --processes: what is "
            "finished stays"
        ) from error
    finally:
        for child in multiprocessing.active_children():
            child.kill()
        executor.shutdown(wait=False, cancel_futures=True)


_vocabulary: Vocabulary
_progress: Any


def _start_worker(vocabulary: str, progress: Any) -> None:
    """Set up a worker: its vocabulary, and that it ends when the process that started it does, however that ends."""
    global _vocabulary, _progress
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _vocabulary, _progress = load_vocabulary(vocabulary), progress


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(number: int, job: Job) -> tuple[Receipt, float]:
    begun = time.process_time()

    def advance(num_bytes: int) -> None:
        _progress[number] += num_bytes

    return prepare_shard(job, _vocabulary, advance), time.process_time() - begun


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Start processes to whom Ctrl-C means nothing: this one stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
