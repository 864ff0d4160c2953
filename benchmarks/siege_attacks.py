"""The attacks of siege.py. Each returns figures with their limits; each leaves the server for the next one."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.http_client import Connection, HttpError
from benchmarks.watcher import watched
from tests.server.mutation import mutated

CHAT = "/v1/chat/completions"
POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
KNOWN: dict[str, Any] = {"temperature": 0, "max_tokens": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    attack: str
    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


@dataclass(slots=True)
class Target:
    """The server; `known` is what it answered to KNOWN before it was attacked."""

    port: int
    pid: int
    known: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_mib(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        async with Connection(self.url) as connection:
            response = await connection.request("POST", CHAT, body)
            return response.status, response.headers, await connection.body()

    async def get(self, path: str) -> bytes:
        async with Connection(self.url) as connection:
            await connection.request("GET", path)
            return await connection.body()


def chat(text: str = "hi", **fields: Any) -> bytes:
    message = {"role": "user", "content": text}
    return json.dumps({"model": "moondream3-preview", "messages": [message], **fields}).encode()


def _long(number: int) -> str:
    """A question whose answer takes a while; each one another, so that no prompt is known."""
    return f"{number}. Write a short poem about the moon."


def p99(values: list[float]) -> float:
    return round(float(np.percentile(values, 99)), 2)


async def uploads(target: Target, scale: float) -> list[Figure]:
    """32 bodies of 10 MB at once: pictures, and every other one what looks like a picture until it is decoded."""
    bodies = [_upload(_photograph(i) if i % 2 else os.urandom(7_500_000)) for i in range(max(2, int(32 * scale)))]
    async with watched(target.url) as times:
        statuses = [status for status, _, _ in await asyncio.gather(*map(target.ask, bodies))]
    wrong = sum(status not in (200 if i % 2 else 400, 429) for i, status in enumerate(statuses))
    return [
        Figure(attack="uploads", what="p99 of /health, ms", value=p99(times), limit=50),
        Figure(attack="uploads", what="wrong statuses", value=wrong, limit=0),
    ]


def _photograph(seed: int) -> bytes:
    """A JPEG of 7.5 MB or so, 6.6 megapixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2100, 3150, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _upload(picture: bytes) -> bytes:
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    return json.dumps(
        {"model": "moondream3-preview", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    ).encode()


async def halves(target: Target, scale: float) -> list[Figure]:
    """200 connections with half a header, 200 with half a body."""
    starts = ["GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ", POST + 'Content-Length: 500\r\n\r\n{"model'] * int(
        200 * scale
    )
    begin = time.perf_counter()

    async def stall(start: str) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(start.encode())
        with suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()
        return time.perf_counter() - begin

    async with watched(target.url) as times:
        closed = await asyncio.wait_for(asyncio.gather(*map(stall, starts)), 90)
    return [
        Figure(attack="halves", what="p99 of /health, ms", value=p99(times), limit=100),
        Figure(attack="halves", what="all closed after, s", value=round(max(closed), 1), limit=30),
    ]


async def flood(target: Target, _: float) -> list[Figure]:
    """Bodies of 100 MB where 32 are allowed: announced, and in chunks."""
    statuses, before, peak = [], target.resident_mib(), 0.0
    for framing in ("Content-Length: 104857600\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write((POST + framing).encode())
        piece = b" " * (1 << 20)
        if "chunked" in framing:
            piece = b"100000\r\n" + piece + b"\r\n"
        with suppress(ConnectionError):
            for _ in range(100):
                writer.write(piece)
                await writer.drain()
                peak = max(peak, target.resident_mib())
        line = await reader.readline()
        statuses.append(line.split()[1] if line else b"")
        writer.close()
    return [
        Figure(attack="flood", what="answers other than 413", value=sum(s != b"413" for s in statuses), limit=0),
        # The chunked one is refused when its 33rd MiB has come.
        Figure(attack="flood", what="more memory, MiB", value=round(peak - before, 1), limit=32 + 20),
    ]


async def mutations(target: Target, scale: float) -> list[Figure]:
    """500 good requests with faults in them."""
    times, worst = [], 0
    async with Connection(target.url) as connection:
        for seed in range(int(500 * scale)):
            body = mutated(seed, PIXEL)
            begin = time.perf_counter()
            response = await connection.request("POST", CHAT, body)
            await connection.body()
            if response.status != 200:  # those of which the fault was harmless take the time of an answer
                times.append((time.perf_counter() - begin) * 1e3)
            worst = max(worst, response.status)
    return [
        Figure(attack="mutations", what="largest status", value=worst, limit=499),
        Figure(attack="mutations", what="p99 of a refusal, ms", value=p99(times), limit=50),
    ]


async def crowd(target: Target, scale: float) -> list[Figure]:
    """Ten times as many requests at once as can run or wait."""
    refusals: list[float] = []
    wrong = 0

    async def one(i: int) -> None:
        nonlocal wrong
        async with Connection(target.url) as connection:
            await connection.request("GET", "/health")
            await connection.body()
            await asyncio.sleep(2 + 0.005 * i)
            begin = time.perf_counter()
            response = await connection.request("POST", CHAT, chat(_long(i), max_tokens=400, temperature=0))
            await connection.body()
            if response.status == 429:
                refusals.append((time.perf_counter() - begin) * 1e3)
                wrong += response.headers.get("retry-after") != "1"
            else:
                wrong += response.status != 200

    async with watched(target.url) as times:
        await asyncio.gather(*(one(i) for i in range(max(40, int(240 * scale)))))
    return [
        Figure(attack="crowd", what="neither 200 nor 429 with retry-after", value=wrong, limit=0),
        Figure(attack="crowd", what="none refused", value=not refusals, limit=0),
        Figure(attack="crowd", what="p99 of a 429, ms", value=p99(refusals or [0.0]), limit=50),
        Figure(attack="crowd", what="p99 of /health, ms", value=p99(times), limit=100),
    ]


async def leavers(target: Target, scale: float) -> list[Figure]:
    """200 streams and 200 whole requests, of which each client leaves at a random time."""
    rng = random.Random(0)

    async def one(i: int) -> None:
        with suppress(HttpError, asyncio.TimeoutError):
            async with Connection(target.url) as connection:
                body = chat(_long(i), max_tokens=400, stream=i % 2 == 0)
                await asyncio.wait_for(_read(connection, body), rng.uniform(0.01, 0.6))

    for _ in range(4):
        await asyncio.gather(*(one(i) for i in range(int(100 * scale))))
    begin = time.perf_counter()
    while await gauge(target, "mdinfer_num_requests_running") > 0 and time.perf_counter() - begin < 20:
        await asyncio.sleep(0.05)
    return [Figure(attack="leavers", what="idle after, s", value=round(time.perf_counter() - begin, 2), limit=1)]


async def _read(connection: Connection, body: bytes) -> None:
    await connection.request("POST", CHAT, body)
    await connection.body()


async def soak(target: Target, seconds: float) -> list[Figure]:
    """Load of eight clients, every fifth request given up; memory and descriptors after a quarter of it, and after the
    rest.
    """
    await _load(target, seconds / 4, 1)
    memory, descriptors = target.resident_mib(), target.descriptors()
    await _load(target, seconds * 3 / 4, 2)
    return [
        Figure(attack="soak", what="more memory, MiB", value=round(target.resident_mib() - memory, 1), limit=32),
        Figure(attack="soak", what="more descriptors", value=target.descriptors() - descriptors, limit=2),
    ]


async def _load(target: Target, seconds: float, seed: int) -> None:
    rng, begin = random.Random(seed), time.perf_counter()

    async def client(i: int) -> None:
        while time.perf_counter() - begin < seconds:
            with suppress(HttpError, asyncio.TimeoutError):
                async with Connection(target.url) as connection:
                    body = chat(f"question {rng.random()}", max_tokens=40, stream=rng.random() < 0.5)
                    await asyncio.wait_for(_read(connection, body), 0.1 if rng.random() < 0.2 else 60)

    await asyncio.gather(*map(client, range(8)))
    await asyncio.sleep(1)


async def aftermath(target: Target, name: str) -> list[Figure]:
    """The same process, idle within 5 s, no page held, and the answer that it gave before it was attacked."""
    begin = time.perf_counter()
    while await gauge(target, "mdinfer_num_requests_running") > 0 and time.perf_counter() - begin < 5:
        await asyncio.sleep(0.05)
    faults = [
        not Path(f"/proc/{target.pid}").exists(),
        await gauge(target, "mdinfer_num_requests_running") > 0,
        await gauge(target, "mdinfer_kv_cache_usage_ratio") > 0,
        await known_answer(target) != target.known,
    ]
    return [Figure(attack=name, what="faults afterwards", value=sum(faults), limit=0)]


async def known_answer(target: Target) -> str | None:
    status, _, body = await target.ask(chat(**KNOWN))
    return str(json.loads(body)["choices"][0]["message"]["content"]) if status == 200 else None


async def gauge(target: Target, name: str) -> float:
    for line in (await target.get("/metrics")).decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise KeyError(f"/metrics has no {name}")


ATTACKS: dict[str, Callable[[Target, float], Coroutine[Any, Any, list[Figure]]]] = {
    "mutations": mutations,
    "uploads": uploads,
    "flood": flood,
    "crowd": crowd,
    "leavers": leavers,
    "halves": halves,
}
