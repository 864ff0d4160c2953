"""What the server itself costs, over an engine that costs nothing.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --requests 2000 --streams 64 --tokens 200 --json out.json

The server runs in a process of its own. `text request` are round trips of a short chat on one open connection, and
`floor` those of an ASGI application that answers with a constant: what lies between is the server's. `streams` get one
token each at a time, as from an engine that decodes them as a batch; tokens a second and core are those divided by the
server's processor time, which other work on the machine does not change much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from benchmarks.http_client import Connection
from benchmarks.report import environment, table, write_json
from mdinfer.handle import RequestHandle
from mdinfer.request import Chat, Request
from mdinfer.result import Event, Metrics, Result, Usage
from mdinfer.server.app import create_app
from mdinfer.server.serving import Server, listen, uvicorn_config
from mdinfer.server.settings import Settings

MODEL = "moondream3-preview"
TIMES = Metrics(image_s=0, queue_s=0, vision_s=0.0, prefill_s=0, ttft_s=0, decode_s=0, total_s=0)
TEXT = " four"


class InstantEngine:
    """Ends requests of one token when they are submitted; a thread gives longer ones a token each, step by step."""

    model_id, healthy = "instant", True

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._left: dict[RequestHandle, int] = {}
        self._work = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Request, **_: Any) -> RequestHandle:
        handle = RequestHandle(self._forget, self._forget)
        tokens = request.max_tokens if isinstance(request, Chat) else 1
        if tokens == 1:
            handle._push(_last(1))
        else:
            self._left[handle] = int(tokens)
            self._work.set()
        return handle

    @property
    def full(self) -> bool:
        return False

    def description(self) -> str:
        return "instant"

    def warm_up(self) -> None:
        """There is nothing to warm."""

    def stats(self) -> Any:
        return None

    def close(self) -> None:
        self.healthy = False

    def _forget(self, handle: RequestHandle) -> None:
        self._left.pop(handle, None)

    def _run(self) -> None:
        while self.healthy:
            self._work.wait()
            time.sleep(self._step_s)
            for handle, left in list(self._left.items()):
                self._left[handle] = left - 1
                handle._push(_last(1) if left == 1 else Event(text=TEXT))
            if not self._left:
                self._work.clear()


def _last(tokens: int) -> Event:
    usage = Usage(prompt_tokens=10, completion_tokens=tokens)
    result = Result(text=TEXT * tokens, finish_reason="stop", usage=usage, metrics=TIMES)
    return Event(text=TEXT, finish_reason="stop", usage=usage, result=result)


async def constant(scope: Scope, receive: Receive, send: Send) -> None:
    """The least an application can do with a request: read it and answer."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


async def cpu(_: HttpRequest) -> Response:
    return Response(str(time.process_time()))


def serve(pipe: Any, kind: str, step_s: float) -> None:
    """In the server's process: sends its port when it listens."""
    settings = Settings(port=0)
    app = create_app(InstantEngine(step_s), settings)
    app.router.routes.append(Route("/cpu", cpu))
    listener = listen(settings)
    pipe.send(listener.getsockname()[1])
    if kind == "floor":
        config = uvicorn.Config(constant, http="h11", loop="asyncio", lifespan="off", log_config=None)
        uvicorn.Server(config).run(sockets=[listener])
    else:
        Server(uvicorn_config(app, settings), app.state.service).run(sockets=[listener])


@asynccontextmanager
async def server(kind: str, step_s: float = 0.0) -> AsyncIterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, kind, step_s), daemon=True)
    process.start()
    theirs.close()
    try:
        yield f"http://127.0.0.1:{await asyncio.to_thread(ours.recv)}"
    finally:
        process.kill()
        process.join()


def body(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    return json.dumps({"model": MODEL, "messages": messages, "max_tokens": 1, **fields}).encode()


async def round_trips(url: str, count: int) -> dict[str, float]:
    """Milliseconds, after as many again to warm up, at most 200."""
    text, times = body(), []
    async with Connection(url) as connection:
        for i in range(-min(count, 200), count):
            begin = time.perf_counter()
            response = await connection.request("POST", "/v1/chat/completions", text)
            await connection.body()
            assert response.status == 200
            if i >= 0:
                times.append((time.perf_counter() - begin) * 1e3)
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


async def streams(url: str, count: int, tokens: int) -> dict[str, float]:
    text = body(max_tokens=tokens, stream=True)

    async def one() -> None:
        async with Connection(url) as connection:
            await connection.request("POST", "/v1/chat/completions", text)
            received = b"".join([chunk async for chunk in connection.chunks()])
            assert received.count(TEXT.encode()) == tokens and received.endswith(b"data: [DONE]\n\n")

    async def used() -> float:
        async with Connection(url) as connection:
            await connection.request("GET", "/cpu")
            return float(await connection.body())

    await asyncio.gather(*(one() for _ in range(4)))
    before, begin = await used(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    seconds, busy = time.perf_counter() - begin, await used() - before
    return {
        "streams": count,
        "tokens": count * tokens,
        "tokens_per_s": count * tokens / seconds,
        "tokens_per_core_s": count * tokens / busy,
        "cores": busy / seconds,
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    trips = {}
    for kind in ("floor", "text request"):
        async with server(kind) as url:
            trips[kind] = await round_trips(url, options.requests)
    async with server("streams", options.step_ms / 1e3) as url:
        flow = await streams(url, options.streams, options.tokens)
    added = trips["text request"]["p50_ms"] - trips["floor"]["p50_ms"]
    return {"round_trips": trips, "added_p50_ms": added, "streams": flow}


def main() -> None:
    parser = argparse.ArgumentParser(description="the server's own cost")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200, help="in each stream")
    parser.add_argument("--step-ms", type=float, default=20, help="pause between the engine's steps")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    rows = [[kind, *times.values()] for kind, times in found["round_trips"].items()]
    print(table(["round trip", "p50 ms", "p90 ms", "p99 ms"], rows))
    print(f"added at the median: {found['added_p50_ms']:.3f} ms\n")
    print(table(list(found["streams"]), [list(found["streams"].values())]))
    write_json(options.json, {"environment": environment(torch.device("cpu")), "options": vars(options), **found})


if __name__ == "__main__":
    main()
