"""Load on any OpenAI-compatible server: requests a second, time to first token, time between tokens.

    python -m benchmarks.load http://127.0.0.1:2020/v1 --concurrency 16 --requests 200
    python -m benchmarks.load http://127.0.0.1:2020/v1 --images 1 --image-size 1024x768 --max-tokens 128 --json out.json
    python -m benchmarks.load https://api.example/v1 --key-from API_KEY --model some-model --rate 5

Each worker sends a streamed chat request and, when it has ended, the next; with `--rate` requests start at random times
instead, so many a second on average, and wait for no other. Questions differ; pictures are made up, `--distinct-images`
of them in turn. Tokens are counted by the server's own usage where it sends one, else by chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.http_client import Connection, HttpError
from benchmarks.report import environment, table, write_json

WORDS = ("colour", "shape", "table", "window", "person", "street", "animal", "number", "light", "corner", "picture")
QUANTILES = (50, 90, 99)


@dataclass(slots=True)
class Record:
    """One request: seconds from its start. gaps lie between chunks with text; error is set if it failed."""

    start: float
    first: float | None = None
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None


def picture(seed: int, width: int, height: int) -> str:
    """A data URL of a JPEG like a photograph in size: a coloured slope, some boxes, noise."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, width)[None, :, None] * rng.random(3) * np.linspace(0.3, 1, height)[:, None, None]
    pixels = slope + rng.normal(0, 8, (height, width, 3))
    for _ in range(6):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        pixels[y : y + height // 4, x : x + width // 4] = rng.integers(0, 255, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def bodies(options: argparse.Namespace) -> list[bytes]:
    """The requests, made before the clock starts."""
    rng = random.Random(options.seed)
    width, height = options.image_size
    pictures = [
        picture(options.seed + i, width, height) for i in range(options.distinct_images if options.images else 0)
    ]
    made = []
    for i in range(options.requests):
        text = f"Question {options.seed}.{i}: what of " + " ".join(rng.choices(WORDS, k=options.prompt_words)) + "?"
        urls = [pictures[(i * options.images + j) % len(pictures)] for j in range(options.images)]
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = {
            "model": options.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}],
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"reasoning": True} if options.reasoning else {}),
        }
        made.append(json.dumps(body).encode())
    return made


async def send(connection: Connection, body: bytes, timeout: float) -> Record:
    record = Record(time.perf_counter())
    try:
        await asyncio.wait_for(_exchange(connection, body, record), timeout)
    except HttpError as error:
        record.error = f"connection: {error}"
    except asyncio.TimeoutError:
        record.error = f"no end within {timeout:g} s"
        connection.close()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        record.error = f"an answer of another shape: {type(error).__name__}"
        connection.close()
    record.end = time.perf_counter()
    return record


async def _exchange(connection: Connection, body: bytes, record: Record) -> None:
    response = await connection.request("POST", "/chat/completions", body)
    if response.status == 200:
        await _read_stream(connection, record)
    else:
        await connection.body()
        record.error = f"status {response.status}"


async def _read_stream(connection: Connection, record: Record) -> None:
    last, chunks, done = record.start, 0, False
    async for data in connection.events():
        now = time.perf_counter()
        if data == b"[DONE]":
            done = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            record.error = f"in the stream: {chunk['error'].get('code') or chunk['error'].get('type')}"
            continue
        if usage := chunk.get("usage"):
            record.tokens, record.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        delta = chunk["choices"][0].get("delta", {}) if chunk.get("choices") else {}
        if delta.get("content") or delta.get("reasoning") or delta.get("reasoning_content"):
            chunks += 1
            if record.first is None:
                record.first = now
            else:
                record.gaps.append(now - last)
            last = now
    record.tokens = record.tokens or chunks
    if not done and record.error is None:
        record.error = "the stream was cut"


async def run(options: argparse.Namespace, requests: Sequence[bytes]) -> list[Record]:
    headers = {"Authorization": f"Bearer {options.key}"}
    waiting = iter(requests)

    async def worker() -> list[Record]:
        async with Connection(options.url, headers) as connection:
            return [await send(connection, body, options.timeout) for body in waiting]

    async def single(body: bytes) -> Record:
        async with Connection(options.url, headers) as connection:
            return await send(connection, body, options.timeout)

    if options.rate is None:
        rows = await asyncio.gather(*(worker() for _ in range(options.concurrency)))
        return [record for row in rows for record in row]
    rng = random.Random(options.seed)
    tasks = []
    for body in requests:
        tasks.append(asyncio.create_task(single(body)))
        await asyncio.sleep(rng.expovariate(options.rate))
    return list(await asyncio.gather(*tasks))


def summary(records: Sequence[Record], seconds: float) -> dict[str, Any]:
    good = [record for record in records if record.error is None]
    errors: dict[str, int] = {}
    for record in records:
        if record.error is not None:
            errors[record.error] = errors.get(record.error, 0) + 1
    tokens = sum(record.tokens for record in good)
    return {
        "seconds": seconds,
        "requests": len(good),
        "errors": errors,
        "requests_per_s": len(good) / seconds,
        "tokens_per_s": tokens / seconds,
        "tokens": tokens,
        "prompt_tokens": sum(record.prompt_tokens for record in good),
        "ttft_ms": quantiles([r.first - r.start for r in good if r.first is not None]),
        "inter_token_ms": quantiles([gap for r in good for gap in r.gaps]),
        "latency_ms": quantiles([r.end - r.start for r in good]),
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds; None of nothing."""
    if not seconds:
        return None
    return {f"p{q}": float(value) * 1e3 for q, value in zip(QUANTILES, np.percentile(seconds, QUANTILES), strict=True)}


def report(found: dict[str, Any]) -> str:
    names = {"ttft_ms": "time to first token", "inter_token_ms": "between tokens", "latency_ms": "whole request"}
    rows = [[text, *found[name].values()] for name, text in names.items() if found[name]]
    lines = [
        f"{found['requests']} requests in {found['seconds']:.1f} s: {found['requests_per_s']:.2f} requests/s, "
        f"{found['tokens_per_s']:.1f} tokens/s",
        *(f"{count} failed, {error}" for error, count in found["errors"].items()),
        *([table(["ms", *(f"p{q}" for q in QUANTILES)], rows)] if rows else []),
    ]
    return "\n".join(lines)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="load on an OpenAI-compatible server")
    parser.add_argument("url", metavar="URL", help="base URL, such as http://127.0.0.1:2020/v1")
    parser.add_argument("--model", default="moondream3-preview")
    parser.add_argument("--key-from", metavar="VARIABLE", default="MDINFER_API_KEY", help="variable that holds the key")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    parser.add_argument("--rate", type=float, help="requests a second instead, at random times")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--reasoning", action="store_true")
    parser.add_argument("--prompt-words", type=int, default=20)
    parser.add_argument("--images", type=int, default=0, help="pictures in each request")
    parser.add_argument("--image-size", type=_size, default=(1024, 768), metavar="WxH")
    parser.add_argument("--distinct-images", type=int, default=16)
    parser.add_argument("--warm-up", type=int, default=2, help="other requests before the clock starts")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="of a request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(argv)
    options.key = os.environ.get(options.key_from, "none")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status is 1 if any request failed."""
    options = arguments(argv)
    requests = bodies(options)
    if options.warm_up:
        others = {"seed": options.seed + 1_000_000, "requests": options.warm_up, "rate": None}
        warm_up = argparse.Namespace(**{**vars(options), **others})
        asyncio.run(run(warm_up, bodies(warm_up)))
    begin = time.perf_counter()
    records = asyncio.run(run(options, requests))
    found = summary(records, time.perf_counter() - begin)
    print(report(found))
    stated = {name: value for name, value in vars(options).items() if name not in ("key", "key_from", "json")}
    write_json(options.json, {"environment": environment(torch.device("cpu")), "options": stated, **found})
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
