"""A server on a free loopback port, on a thread of its own, with the very parts that `mdinfer serve` is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from mdinfer.server.app import create_app
from mdinfer.server.protocols import EngineLoader, ServingEngine
from mdinfer.server.service import Service
from mdinfer.server.serving import Server, listen, uvicorn_config
from mdinfer.server.settings import Settings
from tests.server import shapes

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = "moondream/moondream3-preview"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    url: str
    port: int
    service: Service
    server: Server
    http: httpx.Client

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 2?"}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def stream(self, **fields: Any) -> list[Any]:
        """The decoded events of a chat stream, [DONE] as a string."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200, response.text
        return events_of(response.text)


def events_of(text: str) -> list[Any]:
    """The data of a whole event stream; fails on any line that is neither data, comment nor empty.

    Chat streams are checked against OpenAI's shapes.
    """
    assert text.endswith("\n\n")
    events = []
    for line in text.splitlines():
        if line.startswith("data: "):
            events.append("[DONE]" if line == "data: [DONE]" else json.loads(line[6:]))
        else:
            assert line == "" or line.startswith(":"), line
    if "choices" in events[0]:
        shapes.check_chat_stream(events)
    return events


def check_shape(response: httpx.Response) -> None:
    """Every whole JSON answer of OpenAI's routes, and every error, has the published shape."""
    if response.headers.get("content-type") != "application/json":
        return
    response.read()
    path = response.request.url.path
    if response.status_code != 200:
        shapes.check(shapes.ERROR, response.json())
    elif path == "/v1/chat/completions":
        shapes.check(shapes.COMPLETION, response.json())
    elif path.startswith("/v1/models"):
        shapes.check(shapes.MODEL_LIST if path == "/v1/models" else shapes.MODEL, response.json())


@contextlib.contextmanager
def live_server(engine: ServingEngine | EngineLoader, **options: Any) -> Iterator[Live]:
    settings = Settings(**{"port": 0, **options})
    app = create_app(engine, settings)
    service: Service = app.state.service
    server = Server(uvicorn_config(app, settings), service)
    listener = listen(settings)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{port}"
    try:
        hooks = {"response": [check_shape]}
        with httpx.Client(base_url=url, timeout=20, event_hooks=hooks) as http:
            yield Live(url=url, port=port, service=service, server=server, http=http)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose envelope is checked."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str | None)
    for trace in ("Traceback", "0x", "/secret", ".py"):
        assert trace not in response.text
    assert response.headers["x-request-id"].startswith("req_")
    return error
