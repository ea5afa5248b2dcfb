"""The thread that makes batches ready: its order, its bounds, its errors and its end."""

import threading
import time

import pytest

from stagjax.errors import UserError
from stagjax.training.prefetch import Prefetcher
from tests.waits import HANG, eventually


def test_batches_come_in_order_and_end():
    prefetcher = Prefetcher(lambda number: number * 10, 3, 7)
    assert [prefetcher.take(HANG) for _ in range(4)] == [30, 40, 50, 60]
    assert prefetcher.take(0.01) is None
    prefetcher.close()


def test_it_reads_ahead_but_not_further_than_it_may():
    read = []
    prefetcher = Prefetcher(lambda number: read.append(number) or number, 0, 100, depth=2)
    assert eventually(lambda: len(read) == 3)
    time.sleep(0.05)
    # Two wait; a third has been read and waits for room.
    assert read == [0, 1, 2]
    assert prefetcher.take(HANG) == 0
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_a_slow_reader_gives_nothing_at_once_and_its_batch_later():
    release = threading.Event()
    prefetcher = Prefetcher(lambda number: release.wait(HANG) and number, 0, 1)
    begun = time.monotonic()
    assert prefetcher.take() is None
    assert prefetcher.take(0.05) is None
    assert 0.05 <= time.monotonic() - begun
    release.set()
    assert prefetcher.take(HANG) == 0
    prefetcher.close()


def test_an_error_reaches_the_taker_as_itself_after_the_batches_before_it():
    error = UserError("row 7 of rows-3 is damaged")

    def read(number):
        if number == 2:
            raise error
        return number

    prefetcher = Prefetcher(read, 0, 9)
    assert [prefetcher.take(HANG), prefetcher.take(HANG)] == [0, 1]
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            prefetcher.take(HANG)
        assert caught.value is error
    prefetcher.close()


def test_a_reader_that_hangs_does_not_hold_up_the_end():
    forever = threading.Event()
    prefetcher = Prefetcher(lambda number: forever.wait(2 * HANG), 0, 1)
    begun = time.monotonic()
    prefetcher.close()
    assert time.monotonic() - begun < HANG
    assert prefetcher._thread.daemon
    forever.set()
