"""Good chat requests with faults, the same ones for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

MODEL = "moondream/moondream3-preview"

JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 31,
    1 << 63,
    1 << 70,
    1e308,
    -0.0,
    "",
    "x" * 5000,
    "\x00",
    "🌙",
    [],
    {},
]
JUNK += [[[]], [None], {"": None}, {"type": "text"}, {"type": ["text"]}, {"url": "file:///etc/passwd"}, ["data:,"]]


def mutated(seed: int, data_url: str) -> bytes:
    """A good request with one to three faults: a value replaced, removed or wrapped, or bytes damaged."""
    rng = random.Random(seed)
    parts = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": "What?"}]
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        "temperature": 0.5,
        "max_tokens": 5,
        "stop": ["a"],
        "stream": rng.random() < 0.5,
        "n": 1,
        "reasoning": {"effort": "low"},
    }
    for _ in range(rng.randint(1, 3)):
        owner, key = rng.choice(list(places(body)))
        if rng.random() < 0.2:
            del owner[key]
        else:
            owner[key] = rng.choice([*JUNK, [owner[key]]])
    text = bytearray(json.dumps(body).encode())
    for _ in range(rng.choice([0, 0, 0, 1, 5])):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places(value[key])
