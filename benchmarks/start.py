"""How long a newcomer waits: from `mdinfer serve` to the first answer, and how fast an answer comes when it is alone.

    python -m benchmarks.start
    python -m benchmarks.start --model DIRECTORY --rounds 5 --json start.json

Each round starts a server of its own, in a process of its own, and asks until it answers; then it asks for one long
answer. The first round may find nothing in the operating system's caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.http_client import Connection, HttpError
from benchmarks.report import environment, median, table, write_json

_QUESTION = {"role": "user", "content": "What is 2 + 2?"}
_POEM = {"role": "user", "content": "Write a short poem about the moon."}
_LIMIT = 600.0


def one_start(model: str, tokens: int) -> dict[str, float]:
    """Seconds from the command to the socket and to the first answer; tokens a second of a longer one, alone."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mdinfer", "serve", model, "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MDINFER_API_KEY": "", "MDINFER_LOG_LEVEL": "error"},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening on (http://\S+),", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
        listening = time.perf_counter() - begin
        answered, speed = asyncio.run(_ask(found[1], process, begin, tokens))
    finally:
        process.kill()
        process.communicate()
    return {"listening_s": listening, "first_answer_s": answered, "tokens_per_s": speed}


async def _ask(url: str, process: subprocess.Popen[str], begin: float, tokens: int) -> tuple[float, float]:
    while (await _answer(url, _QUESTION, 8))[0] != 200:
        if process.poll() is not None:
            assert process.stderr is not None
            raise SystemExit(f"the server ended: {process.stderr.read()}")
        if time.perf_counter() - begin > _LIMIT:
            raise SystemExit(f"no answer within {_LIMIT:g} s")
        await asyncio.sleep(0.02)
    answered = time.perf_counter() - begin
    start = time.perf_counter()
    _, usage = await _answer(url, _POEM, tokens)
    return answered, usage["completion_tokens"] / (time.perf_counter() - start)


async def _answer(url: str, message: dict[str, str], tokens: int) -> tuple[int, Any]:
    """Status and usage."""
    body = {"model": "moondream3-preview", "messages": [message], "max_tokens": tokens, "temperature": 0}
    try:
        async with Connection(url) as connection:
            response = await connection.request("POST", "/v1/chat/completions", json.dumps(body).encode())
            answer = json.loads(await connection.body())
    except HttpError:
        return 0, {}
    return response.status, answer.get("usage")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of the longer answer")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    rounds = [one_start(options.model, options.tokens) for _ in range(options.rounds)]
    names = {
        "listening_s": "s to the socket",
        "first_answer_s": "s to the first answer",
        "tokens_per_s": "tokens/s alone",
    }
    rows = [
        [text, median([r[name] for r in rounds]), min(r[name] for r in rounds), max(r[name] for r in rounds)]
        for name, text in names.items()
    ]
    print(table(["", "median", "least", "most"], rows))
    result = {
        "benchmark": "start",
        "environment": environment(torch.device("cpu")),
        "model": options.model,
        "rounds": rounds,
    }
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
