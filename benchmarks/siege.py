"""A server under attack: what rude, slow, broken and too many clients do to it and to the others.

    python -m benchmarks.siege                        # about two minutes
    python -m benchmarks.siege --soak-minutes 10      # then ten minutes of load with one client in five leaving
    python -m benchmarks.siege --only uploads crowd

Starts `mdinfer serve demo` and prints each figure beside its limit; the exit status is 1 if one is exceeded. The
attacks are in siege_attacks.py. The limits are meant for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import siege_attacks
from benchmarks.http_client import Connection
from benchmarks.report import environment, table, write_json
from benchmarks.siege_attacks import Figure, Target

SERVER = ("demo", "--port", "0", "--max-body-mb", "32", "--max-batch-size", "8", "--max-queue", "16")
ENVIRONMENT = {
    "MDINFER_LOG_LEVEL": "error",
    "MDINFER_KV_MEMORY": "128MiB",
    "MDINFER_API_KEY": "",
    "MDINFER_BODY_TIMEOUT": "20",
    "OMP_NUM_THREADS": "1",  # several would wait for each other where the attackers take the processors
}


@contextmanager
def served() -> Iterator[Target]:
    """A server process that is ready."""
    command = [sys.executable, "-m", "mdinfer", "serve", *SERVER]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening on http://[^:]+:(\d+)", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
        target = Target(int(found[1]), process.pid)
        asyncio.run(_until_ready(target))
        target.known = asyncio.run(siege_attacks.known_answer(target))
        assert target.known is not None
        yield target
    finally:
        process.kill()
        process.communicate()


async def _until_ready(target: Target) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        async with Connection(target.url) as connection:
            status = (await connection.request("GET", "/ready")).status
            await connection.body()
        if status == 200:
            return
        await asyncio.sleep(0.2)
    raise TimeoutError("the server is not ready")


def besiege(names: Sequence[str], soak_minutes: float, scale: float) -> list[Figure]:
    figures: list[Figure] = []
    with served() as target:
        for name in names:
            attack = siege_attacks.ATTACKS[name]
            figures += asyncio.run(attack(target, scale))
            figures += asyncio.run(siege_attacks.aftermath(target, name))
        if soak_minutes:
            figures += asyncio.run(siege_attacks.soak(target, soak_minutes * 60))
            figures += asyncio.run(siege_attacks.aftermath(target, "soak"))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="a server under attack")
    parser.add_argument("--only", nargs="+", choices=siege_attacks.ATTACKS, default=list(siege_attacks.ATTACKS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of clients")
    parser.add_argument("--soak-minutes", type=float, default=0.0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(argv)
    figures = besiege(options.only, options.soak_minutes, options.scale)
    rows = [[f.attack, f.what, f"{f.value:g}", f"{f.limit:g}", "ok" if f.holds else "EXCEEDED"] for f in figures]
    print(table(["attack", "figure", "value", "at most", ""], rows))
    result: dict[str, Any] = {
        "environment": environment(torch.device("cpu")),
        "figures": [f.as_dict() for f in figures],
    }
    write_json(options.json, result)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
