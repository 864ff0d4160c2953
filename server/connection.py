"""uvicorn's HTTP/1.1 connection, with the time limits it lacks."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from mdinfer.server.call import new_request_id
from mdinfer.server.errors import bad_request
from mdinfer.server.turns import PacedFlow, Turns

HEADER_SECONDS = 20.0
DISCARD_SECONDS = 20.0
READER_SECONDS = 60.0
AHEAD_BYTES = 1 << 16
SPARE_FILES = 128

logger = logging.getLogger("mdinfer.server")


def most_connections() -> int:
    """Short of the files a process may open: past that, asyncio logs thousands of lines a second."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 20) if files == resource.RLIM_INFINITY else max(8, files - SPARE_FILES)


@functools.cache
def _tell_once(most: int) -> None:
    logger.warning("more than %d connections are refused: raise the limit of open files (ulimit -n)", most)


class Connection(H11Protocol):
    """Closes a connection whose client is too slow to be served, or that is one too many.

    Headers must be complete HEADER_SECONDS after their first byte (or after connecting); the rest of a body
    that was refused is discarded for DISCARD_SECONDS; a client whose send buffer is full must read within
    READER_SECONDS. While a request is at work AHEAD_BYTES of the next ones are read, for only who reads a connection
    hears that its client has left.
    """

    def __init__(self, *args: Any, turns: Turns, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = turns
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = PacedFlow(transport, self._turns)
        self._arm("headers", HEADER_SECONDS)
        if len(self.connections) > (most := most_connections()):
            _tell_once(most)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._disarm(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= AHEAD_BYTES:
            self.flow.resume_reading()
        self._watch_headers()
        if self.conn.their_state is not h11.SEND_BODY:
            self._disarm("discard")

    def _watch_headers(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._arm("headers", HEADER_SECONDS)
        else:
            self._disarm("headers")

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self._arm("discard", DISCARD_SECONDS)
        super().on_response_complete()
        self._watch_headers()

    def pause_writing(self) -> None:
        self._arm("reader", READER_SECONDS)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._disarm("reader")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the same envelope as all else, and close."""
        body = msgspec.json.encode(bad_request("the bytes received are not a valid HTTP/1.1 request").body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", new_request_id().encode()),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _arm(self, name: str, seconds: float) -> None:
        """Start a timer unless it runs."""
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, functools.partial(self._give_up, name))

    def _disarm(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _give_up(self, name: str) -> None:
        self._timers.pop(name, None)
        self.transport.abort()
