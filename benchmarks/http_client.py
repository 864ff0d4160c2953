"""HTTP/1.1 for load generators: one connection a worker, little work a chunk. No redirects, no proxies, no cookies."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

import h11

_READ = 1 << 16


class HttpError(Exception):
    """A connection that broke, or that nobody accepted."""


@dataclass(slots=True)
class Response:
    """status and headers are known at once; the body comes by iterating `Connection.chunks`."""

    status: int
    headers: dict[str, str]


class Connection:
    """A connection to one server, kept open between requests and made anew when the server closed it."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise HttpError(f"{base_url} is no http:// or https:// URL")
        self._host, self._secure = url.hostname, url.scheme == "https"
        self._port = url.port or (443 if self._secure else 80)
        self._path = url.path.rstrip("/")
        self._headers = [("Host", url.netloc.rpartition("@")[2]), *(headers or {}).items()]
        self._protocol: h11.Connection | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._protocol = self._reader = self._writer = None

    async def request(self, method: str, path: str, body: bytes = b"") -> Response:
        """Send a request and wait for the response's headers. Raises HttpError."""
        try:
            await self._connect()
            assert self._protocol is not None and self._writer is not None
            headers = [*self._headers, ("Content-Length", str(len(body)))]
            if body:
                headers.append(("Content-Type", "application/json"))
            head = self._protocol.send(h11.Request(method=method, target=self._path + path, headers=headers))
            self._writer.write((head or b"") + body)
            if body:
                self._protocol.send(h11.Data(data=body))
            self._protocol.send(h11.EndOfMessage())
            await self._writer.drain()
            event = await self._event()
            while isinstance(event, h11.InformationalResponse):
                event = await self._event()
        except (OSError, h11.ProtocolError) as error:
            self.close()
            raise HttpError(str(error) or type(error).__name__) from error
        if not isinstance(event, h11.Response):
            self.close()
            raise HttpError("the server closed the connection without an answer")
        return Response(event.status_code, {k.decode().lower(): v.decode() for k, v in event.headers})

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises HttpError."""
        assert self._protocol is not None
        try:
            while not isinstance(event := await self._event(), h11.EndOfMessage | h11.ConnectionClosed):
                if isinstance(event, h11.Data):
                    yield bytes(event.data)
            if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
                self._protocol.start_next_cycle()
            else:
                self.close()
        except (OSError, h11.ProtocolError) as error:
            self.close()
            raise HttpError(str(error) or type(error).__name__) from error

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def events(self) -> AsyncIterator[bytes]:
        """The `data:` of each server-sent event."""
        rest = b""
        async with aclosing(self.chunks()) as chunks:  # type: ignore[type-var]  # a generator, as its type does not say
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()

    async def _connect(self) -> None:
        if self._writer is not None and not (self._reader and self._reader.at_eof()):
            return
        self.close()
        context = ssl.create_default_context() if self._secure else None
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)

    async def _event(self) -> object:
        assert self._protocol is not None and self._reader is not None
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(_READ))
        return event
