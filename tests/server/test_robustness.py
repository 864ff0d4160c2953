"""Many strange requests, many clients that leave, and large bodies: the server stays well and small."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mdinfer.request import Chat
from mdinfer.server.body import holds_more_values
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

    await asyncio.gather(*map(visit, range(60)))


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


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
