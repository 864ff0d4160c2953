"""Threads that read pictures while the engine works."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, order=True)
class _Job(Generic[T]):
    rank: tuple[int, int]
    item: T = field(compare=False)
    work: Callable[[T], None] = field(compare=False)
    refuse: Callable[[T], None] = field(compare=False)


class ReaderPool(Generic[T]):
    """Works on items by rank, the smallest first, on up to `threads` threads.

    What was read takes memory: no more than `ahead` items are read, or being read, and not released. All others wait
    here, not in the executor: one that is no longer wanted leaves at once, and the interpreter's end, which waits for
    all that an executor was given, waits for no more than is under way.
    """

    def __init__(self, threads: int, ahead: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mdinfer-image")
        self._idle, self._ahead = threads, ahead
        self._waiting: list[_Job[T]] = []  # by rank
        self._jobs: dict[T, _Job[T]] = {}  # the same, by item
        self._held: set[T] = set()
        self._lock = threading.Lock()

    def submit(self, item: T, rank: tuple[int, int], work: Callable[[T], None], refuse: Callable[[T], None]) -> None:
        """Have a thread call `work(item)`, or, if the pool closes before, `refuse(item)`. Ranks differ."""
        with self._lock:
            job = self._jobs[item] = _Job(rank, item, work, refuse)
            insort(self._waiting, job)
        self._start()

    def release(self, item: T) -> None:
        """It needs no reading, or what was read of it takes no memory any more; one that is unknown is left alone."""
        with self._lock:
            self._held.discard(item)
            if (job := self._jobs.pop(item, None)) is not None:
                del self._waiting[bisect_left(self._waiting, job)]
        self._start()

    def close(self) -> None:
        """Refuse what waits and end the threads, after what they hold."""
        self._refuse_waiting()
        self._executor.shutdown(wait=True, cancel_futures=False)

    def _start(self) -> None:
        """Give the threads what they can take."""
        while True:
            with self._lock:
                if not (self._waiting and self._idle and len(self._held) < self._ahead):
                    return
                job = self._waiting.pop(0)
                del self._jobs[job.item]
                self._idle -= 1
                self._held.add(job.item)
            try:
                self._executor.submit(self._run, job)
            except RuntimeError:  # closed, or the interpreter is ending
                with self._lock:
                    self._idle += 1
                    self._held.discard(job.item)
                job.refuse(job.item)

    def _run(self, job: _Job[T]) -> None:
        try:
            job.work(job.item)
        finally:
            with self._lock:
                self._idle += 1
            self._start()

    def _refuse_waiting(self) -> None:
        with self._lock:
            rest, self._waiting = self._waiting, []
            self._jobs.clear()
        for job in rest:
            job.refuse(job.item)
