"""How long prefill takes, by prompt length and number of prompts, from nothing and about a picture in the cache.

    python -m benchmarks.prefill --random 20m --device cpu --prompt 775 --requests 1
    python -m benchmarks.prefill --random full --device cuda --experts fp8 --kv fp8

Prompts begin with a picture whose features are there, so that no vision is timed; shorter ones are text alone. "cached"
asks as much again about the same pictures: their positions are found in the cache, only the question's are computed.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks import subject
from benchmarks.batch import Batch
from benchmarks.report import median, table, write_json
from benchmarks.subject import Subject
from benchmarks.vision import floor_cells


def measure(on: Subject, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of fresh prefills, and of cached ones where there is a picture. The first round warms up."""
    image = on.model.config.vision.positions + 1
    records = []
    for prompt in options.prompt:
        for requests in options.requests:
            pictured = prompt > image
            times: dict[int, list[float]] = {0: [], image: []} if pictured else {0: []}
            for turn in range(options.rounds + 1):
                batch = Batch(on.model, requests, prompt, 2, seed=turn, kv=options.kv, image=pictured)
                for cached in times:
                    if cached:
                        batch.again(prompt)
                    on.synchronize()
                    start = time.perf_counter()
                    batch.step()
                    if turn:
                        times[cached].append(1e3 * (time.perf_counter() - start))
                del batch
            records += [_record(on, prompt, requests, cached, pictured, ms) for cached, ms in times.items()]
    return records


def _record(on: Subject, prompt: int, requests: int, cached: int, pictured: bool, times: list[float]) -> dict[str, Any]:
    floor = None
    if on.floors:
        floor = on.floors.prefill(requests, prompt, on.precision, cached=cached, image=pictured)
    return {
        "name": f"{requests} x {prompt}, {cached} cached",
        "prompt": prompt,
        "requests": requests,
        "cached": cached,
        "prefill_ms": median(times),
        "prefill_best_ms": min(times),
        "new_tokens_per_s": 1e3 * requests * (prompt - cached) / median(times),
        "floor_ms": floor,
        "repeats": {"prefill_ms": times},
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subject.add_options(parser, rounds=5)
    parser.add_argument("--prompt", type=int, nargs="+", default=[45, 775, 1600], metavar="N", help="positions")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], metavar="N", help="prefilled in one step")
    options = parser.parse_args(argv)
    if min(*options.prompt, *options.requests) < 1:
        parser.error("counts are positive")
    on = subject.load("prefill", options, parser)
    result = {**on.header, "results": measure(on, options)}
    print(
        table(
            ["prompts", "positions", "cached", "ms", "best", "each", "new tokens/s", "floor ms", "of it"],
            [
                [
                    r["requests"],
                    r["prompt"],
                    r["cached"],
                    r["prefill_ms"],
                    r["prefill_best_ms"],
                    r["prefill_ms"] / r["requests"],
                    r["new_tokens_per_s"],
                    *floor_cells(r["floor_ms"], r["prefill_ms"]),
                ]
                for r in result["results"]
            ],
        )
    )
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
