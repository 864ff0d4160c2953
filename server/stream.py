"""Server-sent events: the order of a stream, its silence and its failures. What an event says is a dialect's.

The response starts with the first event of the engine, so that a request which fails before it gets a proper
status; or after one ping interval, so that nobody waits for headers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mdinfer.request import Request
from mdinfer.result import Event, Result
from mdinfer.server.call import call_of
from mdinfer.server.errors import ClientGone
from mdinfer.server.exchange import submitted
from mdinfer.server.protocols import Handle
from mdinfer.server.service import service_of

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Dialect(Protocol):
    """Turns the engine's events into the JSON of a stream. `index` counts the requests of the exchange."""

    def opening(self) -> Iterable[object]: ...

    def chunks(self, index: int, event: Event) -> Iterable[object]: ...

    def closing(self, results: Sequence[Result]) -> Iterable[object]: ...

    @property
    def end(self) -> bytes:
        """Raw bytes after the last chunk of a stream that did not fail."""


class EventStream(Response):
    """The response that runs `requests` and tells of them in a dialect."""

    def __init__(self, http: HttpRequest, requests: Sequence[Request], dialect: Dialect) -> None:
        super().__init__()
        self.http, self.requests, self.dialect = http, requests, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        interval = service_of(self.http).settings.ping_interval
        async with submitted(self.http, self.requests) as work:
            closes = scope.get("http_version", "1.1").startswith("1")  # HTTP/2 forbids the header
            headers = [*HEADERS, (b"connection", b"close")] if closes else HEADERS
            wire = _Wire(send, self.dialect, headers)
            pinger = asyncio.create_task(wire.ping(interval))
            tellers = [asyncio.create_task(self._tell(i, h, wire)) for i, h in enumerate(work.handles)]
            try:
                results = await asyncio.gather(*tellers)
                call_of(scope).results = results
                await wire.finish([*self.dialect.closing(results)], self.dialect.end)
            except Exception as error:
                failure = work.failure(error)
                await _settle([pinger, *tellers])
                if not wire.started:
                    raise failure from error
                if isinstance(failure, ClientGone):
                    call_of(scope).client_left = True
                else:
                    call_of(scope).failure = failure
                    await wire.finish([failure.body()], b"")
            finally:
                await _settle([pinger, *tellers])

    async def _tell(self, index: int, handle: Handle, wire: _Wire) -> Result:
        result: Result | None = None
        async for event in handle:
            await wire.send([*self.dialect.chunks(index, event)])
            result = event.result or result
        assert result is not None, "the last event of a stream carries its result"
        return result


class _Wire:
    """The connection's sending side. Several tasks may use it; each call's events stay together."""

    def __init__(self, send: Send, dialect: Dialect, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._dialect, self._headers = send, dialect, headers
        self._lock = asyncio.Lock()
        self._spoke = False
        self.started = False

    async def send(self, payloads: Sequence[object]) -> None:
        async with self._lock:
            await self._write(b"".join(map(_encode, payloads)))

    async def finish(self, payloads: Sequence[object], end: bytes) -> None:
        async with self._lock:
            await self._write(b"".join(map(_encode, payloads)) + end, more=False)

    async def ping(self, interval: float) -> None:
        """A comment line after each `interval` seconds without an event."""
        while True:
            await asyncio.sleep(interval)
            async with self._lock:
                if not self._spoke:
                    await self._write(b": ping\n\n")
                self._spoke = False

    async def _write(self, data: bytes, more: bool = True) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(self._headers)})
            data = b"".join(map(_encode, self._dialect.opening())) + data
        if data or not more:
            self._spoke = True
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _encode(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


async def _settle(tasks: Iterable[asyncio.Task[object]]) -> None:
    """Cancel tasks and wait until they are gone."""
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
