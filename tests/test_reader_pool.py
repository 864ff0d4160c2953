from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count

import pytest

from mdinfer.reader_pool import ReaderPool


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Reading:
    """Work that lasts until it may end."""

    def __init__(self, *, open: bool = False) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.refused: list[str] = []
        self.gate = threading.Event()
        self._number = count()
        if open:
            self.gate.set()

    def read(self, item: str) -> None:
        self.begun.append(item)
        assert self.gate.wait(5)
        self.ended.append(item)

    def submit(self, pool: ReaderPool[str], items: str, priority: int = 0) -> None:
        for item in items:
            pool.submit(item, (priority, next(self._number)), self.read, self.refused.append)


def test_by_rank_and_no_more_at_once_than_threads() -> None:
    pool, reading = ReaderPool[str](2, 99), Reading()
    reading.submit(pool, "abcd")
    reading.submit(pool, "xy", priority=-1)
    wait_for(lambda: len(reading.begun) == 2)
    time.sleep(0.02)
    assert sorted(reading.begun) == ["a", "b"]
    reading.gate.set()
    wait_for(lambda: len(reading.ended) == 6)
    assert sorted(reading.begun[2:4]) == ["x", "y"]
    assert sorted(reading.begun[4:]) == ["c", "d"]
    pool.close()


def test_what_is_read_is_bounded_until_it_is_released() -> None:
    pool, reading = ReaderPool[str](2, 3), Reading(open=True)
    reading.submit(pool, "abcdef")
    wait_for(lambda: len(reading.ended) == 3)
    time.sleep(0.02)
    assert sorted(reading.begun) == ["a", "b", "c"]
    pool.release("b")
    pool.release("b")  # twice makes no room for two
    pool.release("?")
    wait_for(lambda: len(reading.ended) == 4)
    time.sleep(0.02)
    assert reading.begun[3:] == ["d"]
    for item in "acd":
        pool.release(item)
    wait_for(lambda: len(reading.ended) == 6)
    pool.close()


def test_what_waits_can_leave_and_what_is_under_way_is_left_alone() -> None:
    pool, reading = ReaderPool[str](1, 2), Reading()
    reading.submit(pool, "abc")
    wait_for(lambda: reading.begun == ["a"])
    pool.release("b")
    pool.release("a")  # given up while it is read: it takes no room afterwards
    reading.gate.set()
    reading.submit(pool, "de")
    wait_for(lambda: len(reading.ended) == 3)
    time.sleep(0.02)
    assert reading.begun == ["a", "c", "d"]
    pool.close()


@pytest.mark.parametrize("read", [0, 1])
def test_closing_refuses_what_waits(read: int) -> None:
    pool, reading = ReaderPool[str](1, 1), Reading(open=bool(read))
    reading.submit(pool, "abc")
    wait_for(lambda: len(reading.begun) == 1 and len(reading.ended) == read)
    closing = threading.Thread(target=pool.close)
    closing.start()
    wait_for(lambda: reading.refused == ["b", "c"])
    reading.gate.set()
    closing.join(5)
    assert reading.ended == ["a"]
    reading.submit(pool, "d")
    pool.release("a")
    wait_for(lambda: reading.refused == ["b", "c", "d"])
    reading.submit(pool, "ef")
    assert reading.refused == ["b", "c", "d", "e", "f"]


def test_work_that_fails_leaves_its_thread_to_the_next() -> None:
    pool, reading = ReaderPool[str](1, 9), Reading(open=True)

    def broken(item: str) -> None:
        raise ValueError(item)

    pool.submit("x", (0, 0), broken, reading.refused.append)
    pool.submit("a", (0, 1), reading.read, reading.refused.append)
    wait_for(lambda: reading.ended == ["a"])
    pool.close()
