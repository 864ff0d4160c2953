"""Threads that read pictures while the engine works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Job(NamedTuple, Generic[T]):
    item: T
    work: Callable[[T], None]
    refuse: Callable[[T], None]


class ReaderPool(Generic[T]):
    """Works on items in the order of submission, on up to `threads` threads.

    Items beyond what the threads hold wait here, not in the executor: one that is no longer wanted leaves at once,
    and the interpreter's end, which waits for all that an executor was given, waits for no more than is under way.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mdinfer-image")
        self._idle = threads
        self._waiting: deque[_Job[T]] = deque()
        self._lock = threading.Lock()

    def submit(self, item: T, work: Callable[[T], None], refuse: Callable[[T], None]) -> None:
        """Have a thread call `work(item)`, or, if the pool closes before, `refuse(item)`."""
        job = _Job(item, work, refuse)
        with self._lock:
            if not self._idle:
                self._waiting.append(job)
                return
            self._idle -= 1
        self._start(job)

    def discard(self, item: T) -> None:
        """Forget an item that waits; one that is under way, or unknown, is left alone."""
        with self._lock:
            self._waiting = deque(job for job in self._waiting if job.item is not item)

    def close(self) -> None:
        """Refuse what waits and end the threads, after what they hold."""
        self._refuse_waiting()
        self._executor.shutdown(wait=True, cancel_futures=False)

    def _start(self, job: _Job[T]) -> None:
        try:
            self._executor.submit(self._run, job)
        except RuntimeError:  # closed, or the interpreter is ending
            job.refuse(job.item)
            self._refuse_waiting()

    def _run(self, job: _Job[T]) -> None:
        try:
            job.work(job.item)
        finally:
            with self._lock:
                following = self._waiting.popleft() if self._waiting else None
                if following is None:
                    self._idle += 1
            if following is not None:
                self._start(following)

    def _refuse_waiting(self) -> None:
        with self._lock:
            rest, self._waiting = self._waiting, deque()
        for job in rest:
            job.refuse(job.item)
