"""The ASGI application by itself, as other servers than ours run it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import mdinfer.server
from mdinfer.server import Settings, create_app
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def test_names_of_the_package() -> None:
    assert mdinfer.server.create_app is create_app
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mdinfer.server.nothing


def test_any_asgi_server_can_run_it() -> None:
    """Here httpx is the server, without a socket, and without the lifespan that some leave out."""
    app = create_app(FakeEngine(), Settings(api_keys=("k",)))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return [
                await http.get("/ready"),
                await http.post("/v1/chat/completions", json=QUESTION),
                await http.post("/v1/chat/completions", json=QUESTION, headers={"authorization": "Bearer k"}),
            ]

    assert [response.status_code for response in asyncio.run(ask())] == [200, 401, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_cancels_the_handler(stream: bool) -> None:
    """So do some where others send http.disconnect: the work ends all the same, and is counted as given up."""
    engine = FakeEngine(Script(pause=30))
    app = create_app(engine)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/query",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    body = b'{"question": "?", "stream": %s}' % (b"true" if stream else b"false")

    async def run() -> None:
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        async def send(_: Any) -> None:
            """Nobody reads it."""

        task = asyncio.ensure_future(app(scope, receive, send))
        while not engine.handles:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert engine.handles[0].cancelled.is_set()
    assert not app.state.service.running
    assert 'mdinfer_request_errors_total{type="client_left"} 1.0' in app.state.service.metrics.expose("")[0].decode()


@pytest.mark.parametrize(("version", "closes"), [("1.1", True), ("2", False)])
def test_streams_close_connections_of_http_1_only(version: str, closes: bool) -> None:
    scope = {
        "type": "http",
        "http_version": version,
        "method": "POST",
        "path": "/v1/query",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    sent: list[Any] = []

    async def run() -> None:
        messages = [{"type": "http.request", "body": b'{"question": "?", "stream": true}'}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await create_app(FakeEngine())(scope, receive, send)

    asyncio.run(run())
    assert ((b"connection", b"close") in sent[0]["headers"]) is closes
