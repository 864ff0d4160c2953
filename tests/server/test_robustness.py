"""Many strange requests, many clients that leave, and large bodies: the server stays well and small."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request as HttpRequest
from starlette.types import Message

from mdinfer.request import Chat
from mdinfer.server import body
from mdinfer.server.body import holds_more_values
from mdinfer.server.service import Service
from mdinfer.server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import MODEL, Live, error_of, live_server, wait_until
from tests.server.mutation import mutated
from tests.server.test_openai_client import real_engine


def test_mutated_requests_never_break_anything(live: Live, fake: FakeEngine, data_url: str) -> None:
    statuses = set()
    for seed in range(500):
        content = mutated(seed, data_url)
        response = live.http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert response.status_code < 500, (seed, response.text)
        if response.status_code != 200:
            error_of(response)
        statuses.add(response.status_code)
    assert {400, 404} <= statuses
    assert not live.service.running


def test_clients_that_leave_at_any_time_leave_nothing_behind() -> None:
    """Over a real engine: afterwards it is idle, and a known prompt gives the known answer."""
    engine = real_engine()
    question = Chat(messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=8)
    before = engine.submit(question).result().text
    with live_server(engine) as live:
        asyncio.run(_leave(live.url, random.Random(1)))
        wait_until(lambda: not live.service.running, 2)
        answer = live.chat(messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=8)
        assert answer.json()["choices"][0]["message"]["content"] == before
        assert live.http.get("/health").status_code == 200
    engine.close()


async def _leave(url: str, rng: random.Random) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}

    async def visit(i: int) -> None:
        fields = {**body, "stream": i % 2 == 0, "n": 1 + i % 3}
        patience = rng.choice([0.01, 0.05, 0.2])
        async with httpx.AsyncClient(base_url=url, timeout=patience) as http:
            try:
                async with http.stream("POST", "/v1/chat/completions", json=fields) as response:
                    lines = rng.randint(0, 30)
                    async for _ in response.aiter_lines():
                        lines -= 1
                        if lines < 0:
                            return
            except httpx.TransportError:
                return

    for start in range(0, 400, 50):
        await asyncio.gather(*map(visit, range(start, start + 50)))


def test_ten_times_as_many_as_fit() -> None:
    """Those beyond what runs and waits are told to come back; the accepted ones get the answer they get alone."""
    engine = real_engine(max_batch_size=2, max_queue=2)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 60}

    async def ask(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/chat/completions", json=body)

    async def crowd(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            return list(await asyncio.gather(*(ask(http) for _ in range(40))))

    with live_server(engine) as live:
        alone = live.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
        responses = asyncio.run(crowd(live.url))
        accepted = [response for response in responses if response.status_code == 200]
        refused = [response for response in responses if response.status_code == 429]
        assert len(accepted) >= 4
        assert len(refused) >= 1
        assert len(accepted) + len(refused) == 40
        assert all(response.headers["retry-after"] == "1" for response in refused)
        assert all(response.json()["choices"][0]["message"] == alone for response in accepted)
        assert not live.service.running
        assert live.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"] == alone
    engine.close()


def png(width: int, height: int) -> bytes:
    """The start of a PNG of that size, and one byte of its pixels."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"\0")) + block(b"IEND", b"")


REFUSED_PICTURES = {
    "bomb": png(50_000, 50_000),
    "13370 squared": png(13_370, 13_370),
    "1 x 60M": png(1, 60_000_000),
    "cut": png(100, 100),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "html": b"<!doctype html><html></html>",
    "tiff": b"II*\0" + bytes(100),
    "pdf": b"%PDF-1.7\n" + bytes(100),
    "psd": b"8BPS\0\1" + bytes(100),
    "fits": b"SIMPLE  =                    T" + bytes(2850),
    "bytes": bytes(range(256)) * 4,
}


def test_pictures_that_are_refused() -> None:
    engine = real_engine()
    with live_server(engine) as live:
        for name, data in REFUSED_PICTURES.items():
            url = "data:image/png;base64," + base64.b64encode(data).decode()
            begin = resident()
            content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
            response = live.chat(messages=[{"role": "user", "content": content}])
            assert response.status_code == 400, name
            error = error_of(response)
            assert (error["code"], error["param"]) == ("invalid_image", "messages.0.content.1.image_url")
            skill = live.http.post("/v1/caption", json={"image_url": url})
            assert (skill.status_code, error_of(skill)["param"]) == (400, "image_url"), name
            assert resident() - begin < 200 << 20, name
        assert live.chat(max_tokens=2).status_code == 200
    engine.close()


def test_values_are_counted_outside_of_strings() -> None:
    text = json.dumps(["," * 99, '[{,"\\', {"a": "\\\\"}, "\\" * 7, '"' * 9, [1, 2], {}])
    for padding in range(40):  # every place where a chunk's border can fall
        data = (" " * ((1 << 18) - padding) + text).encode()
        assert holds_more_values(data, 10)
        assert not holds_more_values(data, 11)


def test_a_body_of_tiny_values_is_refused_before_it_is_built() -> None:
    with live_server(FakeEngine(), max_body_bytes=32 << 20) as live:
        content = b'{"model": "m", "messages": [' + b"{}," * 7_000_000 + b"{}]}"
        begin = resident()
        response = live.http.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}, timeout=60
        )
        assert response.status_code == 400
        assert error_of(response)["param"] == "messages"
        assert resident() - begin < 200 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_take_no_memory(chunked: bool) -> None:
    peak = 0

    def chunks() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(100):
            peak = max(peak, resident())
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"} | ({} if chunked else {"content-length": str(100 << 20)})
    with live_server(FakeEngine(), max_body_bytes=8 << 20) as live:
        begin = resident()
        assert live.http.post("/v1/chat/completions", content=chunks(), headers=headers).status_code == 413
    assert peak - begin < 40 << 20


def test_a_body_in_tiny_chunks_is_as_good_as_one_in_large_ones() -> None:
    """As a slow client sends it: what is kept of it does not grow with their number."""
    url = "data:image/png;base64," + "QUJD" * (1 << 19)
    content = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    data = json.dumps({"model": MODEL, **content}).encode()
    seen: list[int] = []

    async def sent() -> list[bytes | bytearray]:
        parts = iter(range(0, len(data), 8))

        async def receive() -> Message:
            at = next(parts)
            return {"type": "http.request", "body": data[at : at + 8], "more_body": at + 8 < len(data)}

        service = Service(FakeEngine(), Settings())
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        return await body._read(HttpRequest(scope, receive), service, seen.append)

    pieces = asyncio.run(sent())
    assert b"".join(pieces) == data and sum(seen) == len(data)
    assert len(pieces) <= 2 * len(data) // (1 << 16) + 1
    begin = time.perf_counter()
    decoded = body._decode_large(pieces, None)
    assert len(decoded["messages"][0]["content"][0]["image_url"]["url"]) == len(url)
    assert time.perf_counter() - begin < 0.2


def test_errors_in_large_bodies_tell_their_place(live: Live) -> None:
    """That in the body as it was sent, also after a picture that was cut out before it was decoded."""
    content = b'{"url": "data:image/png;base64,' + b"QUJD" * 30_000 + b'", "n": }'
    response = live.http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    message = error_of(response)["message"]
    assert message == f"the body is not valid JSON: invalid character (byte {len(content) - 1})"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
