"""How long /health takes, watched from a process of its own: a load generator's own work must not count.

Requests are due at fixed times, wait for no other, and are timed from when they were due: so a moment in which nothing
is answered counts for all that come in it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe

from benchmarks.http_client import Connection

INTERVAL = 0.01


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[list[float]]:
    """Milliseconds of each GET /health during the block; the list is filled at its end."""
    times: list[float] = []
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_watch, args=(theirs, url), daemon=True)
    process.start()
    theirs.close()
    try:
        await asyncio.to_thread(ours.recv)  # it has begun
        yield times
        ours.send("end")
        times += await asyncio.to_thread(ours.recv)
    finally:
        process.kill()
        process.join()


def _watch(pipe: Pipe, url: str) -> None:
    pipe.send("begun")
    pipe.send(asyncio.run(_health(pipe, url)))


async def _health(pipe: Pipe, url: str) -> list[float]:
    times: list[float] = []
    idle: list[Connection] = []
    pings: set[asyncio.Task[None]] = set()

    async def ping(due: float) -> None:
        connection = idle.pop() if idle else Connection(url)
        await connection.request("GET", "/health")
        await connection.body()
        times.append((time.perf_counter() - due) * 1e3)
        idle.append(connection)

    due = time.perf_counter()
    while not pipe.poll():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        pings.add(asyncio.create_task(ping(due)))
        due += INTERVAL
    await asyncio.gather(*pings)
    for connection in idle:
        connection.close()
    return times
