"""Pieces of work in a process of their own: one that fails, crashes or hangs takes only itself along.

A GPU's error spoils the process that met it, so the process is replaced after any.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

Record = dict[str, Any]
Work = Callable[..., Record]
_START_S = 120  # for a new process to import torch and find the device


def each(
    work: Work, items: Sequence[tuple[Any, ...]], *, apart: bool, timeout_s: float = 120, budget_s: float = 1e9
) -> Iterator[Record]:
    """The record that `work` makes of each item; {"fault": why} of one that fails, or that `budget_s` does not reach.

    `apart` chooses the other process, for which `work` and the items are pickled; else all happens in this one.
    """
    end = time.monotonic() + budget_s
    worker: _Worker | None = None
    try:
        for item in items:
            if time.monotonic() > end:
                yield {"fault": "not reached in time"}
                continue
            if not apart:
                yield attempt(work, item)
                continue
            worker = worker or _Worker(work)
            record = worker.ask(item, min(timeout_s, max(1.0, end - time.monotonic())))
            yield record
            if record.get("fault"):
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()


def attempt(work: Work, item: tuple[Any, ...]) -> Record:
    """What `work` makes of the item, or its exception as a record."""
    try:
        return work(*item)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return {"fault": f"{type(error).__name__}: {said[0][:200]}"}


class _Worker:
    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work))
        self._process.start()
        theirs.close()
        self._fresh = True

    def ask(self, item: tuple[Any, ...], timeout_s: float) -> Record:
        patience, self._fresh = timeout_s + _START_S * self._fresh, False
        try:
            self._connection.send(item)
            if not self._connection.poll(patience):
                return {"fault": f"no answer within {patience:.0f} s"}
            record: Record = self._connection.recv()
            return record
        except (EOFError, OSError):
            self._process.join(5)
            return {"fault": f"the process ended with exit code {self._process.exitcode}"}

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, work: Work) -> None:
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(attempt(work, item))
