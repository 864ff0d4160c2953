"""Waiting with a deadline for what another thread is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import mdinfer


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


def wait_idle(engine: mdinfer.Engine, free: int | None = None) -> None:
    """Nothing runs, waits or is known any more; the pool's pages (or `free` of them) are free or only cached."""
    scheduler = engine._loop._scheduler
    whole = scheduler.pages.count if free is None else free
    wait_for(lambda: scheduler.pages.free + scheduler.pages.idle == whole, "all pages given back")
    wait_for(lambda: not (engine._tasks or engine._loop._tasks), "all requests forgotten")
    assert not scheduler.running
    assert not len(scheduler.waiting)
    assert not len(scheduler.leaders)
    assert len(scheduler._slots) == engine.options.max_batch_size
