"""Mixed requests one at a time and together; and what a picture costs that was seen before.

The same mixed requests (see load_mix.py) run one after another and all together, each time on pictures and questions
that the engine has not seen; then several questions about each of some pictures. Answers are as long as their limits.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import mdinfer
from benchmarks.load_mix import QUESTIONS, chart, mixed_requests, png
from benchmarks.report import median, table
from mdinfer.request import Query, Request
from mdinfer.result import Result


def one_at_a_time(engine: mdinfer.Engine, requests: list[Request]) -> tuple[float, list[Result]]:
    """Seconds, and the results."""
    start = time.perf_counter()
    results = [engine.submit(request).result() for request in requests]
    return time.perf_counter() - start, results


def together(engine: mdinfer.Engine, requests: list[Request]) -> tuple[float, list[Result]]:
    start = time.perf_counter()
    results = engine.generate(requests)
    return time.perf_counter() - start, results


def measure_load(engine: mdinfer.Engine, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each way; rounds take turns, the first one warms up."""
    ways = {"one at a time": one_at_a_time, "together": together}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ttft: dict[str, list[float]] = {name: [] for name in ways}
    tokens = 0
    for turn in range(arguments.rounds + 1):
        for i, (name, run) in enumerate(ways.items()):
            seed = arguments.seed + 2 * turn + i
            taken, results = run(engine, mixed_requests(arguments.requests, seed, tokens=arguments.tokens))
            if turn:
                seconds[name].append(taken)
                ttft[name] += [r.metrics.ttft_s for r in results]
                tokens = sum(r.usage.completion_tokens for r in results)
    return [
        {
            "way": name,
            "seconds": median(seconds[name]),
            "requests_per_s": arguments.requests / median(seconds[name]),
            "best_requests_per_s": arguments.requests / min(seconds[name]),
            "tokens_per_s": tokens / median(seconds[name]),
            "ttft_p50_ms": 1e3 * median(ttft[name]),
            "ttft_p90_ms": 1e3 * sorted(ttft[name])[int(0.9 * (len(ttft[name]) - 1))],
            "repeats": {"requests_per_s": [arguments.requests / taken for taken in seconds[name]]},
        }
        for name in ways
    ]


def measure_repeats(engine: mdinfer.Engine, pictures: int, seed: int) -> dict[str, Any]:
    """Time to the first token of the first question about a picture, and of those that follow, each alone. It comes as
    a file every time.
    """
    first, later = [], []
    for i in range(pictures + 1):
        picture = png(chart(seed + 10_000 + i))
        times = [
            engine.submit(Query(image=picture, question=q, temperature=0, max_tokens=2)).result().metrics.ttft_s
            for q in QUESTIONS
        ]
        if i:
            first.append(times[0])
            later += times[1:]
    return {
        "pictures": pictures,
        "first_ttft_ms": 1e3 * median(first),
        "later_ttft_ms": 1e3 * median(later),
        "ratio": median(first) / median(later),
    }


def measure(engine: mdinfer.Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of options requests, tokens, pictures, rounds and seed."""
    load = measure_load(engine, arguments)
    return {
        "requests": arguments.requests,
        "load": load,
        "ratio": load[1]["requests_per_s"] / load[0]["requests_per_s"],
        "repeats": measure_repeats(engine, arguments.pictures, arguments.seed),
    }


def show(result: dict[str, Any]) -> None:
    columns = ("way", "requests/s", "best", "tokens/s", "first token p50 ms", "p90 ms")
    keys = ("way", "requests_per_s", "best_requests_per_s", "tokens_per_s", "ttft_p50_ms", "ttft_p90_ms")
    print(f"\n{result['requests']} mixed requests")
    print(table(columns, [[record[key] for key in keys] for record in result["load"]]))
    repeats = result["repeats"]
    print(
        f"together / one at a time: {result['ratio']:.2f}\n\n"
        f"first token of the first question about a picture {repeats['first_ttft_ms']:.1f} ms, of later ones "
        f"{repeats['later_ttft_ms']:.1f} ms: {repeats['ratio']:.1f} times as fast"
    )
