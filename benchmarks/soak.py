"""An engine under load for minutes, with requests given up at random: does it lose anything?

    python -m benchmarks.soak --minutes 10

Clients send mixed requests (see load_mix.py) without pause, with priorities, deadlines and namespaces, on a cache too
small for all; a fifth of them leave early. Memory and descriptors are looked at every few seconds; the end checks
that all pages are free or cached and that a known prompt is still answered as at the beginning. Exit status 1 if not,
or if memory or descriptors have grown from the middle of the run to its end.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

import torch

import mdinfer
from benchmarks.load_mix import endless, mixed_requests
from benchmarks.report import environment, table, write_json

KNOWN = mdinfer.Query(question="What is 2 + 2?", temperature=0, max_tokens=24)
_GROWTH_MIB = 24.0  # from the middle of a run to its end: what allocators and fragments may add, and no leak would
_GROWTH_FILES = 2


class Clients:
    """Threads that send requests until told to stop; `outcomes` counts how requests ended."""

    def __init__(self, engine: mdinfer.Engine, count: int, *, abort: float, seed: int) -> None:
        self._engine, self._abort = engine, abort
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send, args=(seed * 1000 + i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, seed: int) -> None:
        draw = random.Random(seed)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            for request in mixed_requests(8, seed * 10_000 + turn, tokens=40, size=(320, 240)):
                outcome = self._ask(request, draw)
                with self._lock:
                    self.outcomes[outcome] += 1

    def _ask(self, request: Any, draw: random.Random) -> str:
        leave = draw.random() < self._abort
        try:
            handle = self._engine.submit(
                request,
                namespace=draw.choice(("", "a", "b")),
                priority=draw.choice((0, 0, 0, 1)),
                timeout=draw.choice((None, 120.0, 0.05)) if draw.random() < 0.1 else None,
            )
            if leave:
                time.sleep(draw.random() * 0.3)
                handle.cancel()
            handle.result(timeout=300)
        except mdinfer.MdinferError as error:
            return type(error).__name__
        return "finished"


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    samples: list[dict[str, float]] = []
    with mdinfer.Engine.load(
        arguments.checkpoint,
        device=arguments.device,
        max_batch_size=16,
        kv_memory=arguments.kv_memory,
        image_cache=16,
        progress=False,
    ) as engine:
        endless(engine)
        before = engine.submit(KNOWN).result().token_ids
        began = time.perf_counter()
        clients = Clients(engine, arguments.clients, abort=arguments.abort, seed=arguments.seed)
        while (elapsed := time.perf_counter() - began) < 60 * arguments.minutes:
            time.sleep(min(arguments.every, 60 * arguments.minutes - elapsed))
            samples.append(_sample(engine, time.perf_counter() - began, clients))
            print(samples[-1], flush=True)
        clients.stop()
        stats = _idle(engine)
        faults = _faults(engine, samples, stats, clients.outcomes)
        if engine.submit(KNOWN).result().token_ids != before:
            faults.append("a known prompt is answered otherwise than before")
        return {
            "benchmark": "soak",
            "environment": environment(engine._loop._runner.device),
            "minutes": arguments.minutes,
            "clients": arguments.clients,
            "outcomes": dict(clients.outcomes),
            "preemptions": stats.preemptions,
            "steps": stats.steps,
            "samples": samples,
            "faults": faults,
        }


def _sample(engine: mdinfer.Engine, elapsed: float, clients: Clients) -> dict[str, float]:
    gc.collect()
    stats = engine.stats()
    return {
        "seconds": round(elapsed, 1),
        "resident_mib": round(resident_mib(), 1),
        "descriptors": descriptors(),
        "threads": threading.active_count(),
        "requests": sum(clients.outcomes.values()),
        "running": stats.running,
        "waiting": stats.waiting,
        "pages_free": stats.pages_free,
        "pages_cached": stats.pages_cached,
    }


def _idle(engine: mdinfer.Engine) -> mdinfer.EngineStats:
    """Counts once nothing runs, or after 5 s."""
    until = time.perf_counter() + 5
    while True:
        stats = engine.stats()
        if (stats.running == stats.waiting == 0 and not engine._tasks) or time.perf_counter() > until:
            return stats
        time.sleep(0.05)


def _faults(
    engine: mdinfer.Engine, samples: list[dict[str, float]], stats: mdinfer.EngineStats, outcomes: Counter[str]
) -> list[str]:
    found = []
    if stats.running or stats.waiting or engine._tasks:
        found.append(f"{stats.running} requests run and {stats.waiting} wait that nobody waits for")
    if stats.pages_free + stats.pages_cached != stats.pages_total:
        found.append(f"{stats.pages_total - stats.pages_free - stats.pages_cached} pages are lost")
    expected = {"finished", "RequestCancelledError", "DeadlineError"}
    found += [f"{count} requests ended with {name}" for name, count in outcomes.items() if name not in expected]
    middle, last = samples[len(samples) // 2], samples[-1]
    if last["resident_mib"] - middle["resident_mib"] > _GROWTH_MIB:
        found.append(f"memory grew from {middle['resident_mib']} to {last['resident_mib']} MiB")
    if last["descriptors"] - middle["descriptors"] > _GROWTH_FILES:
        found.append(f"descriptors grew from {middle['descriptors']:.0f} to {last['descriptors']:.0f}")
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--abort", type=float, default=0.2, help="share of requests that are given up")
    parser.add_argument("--kv-memory", default="16MiB")
    parser.add_argument("--every", type=float, default=15, help="seconds between two looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the result to this file")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    result = run(arguments)
    print(table(("ended", "requests"), sorted(result["outcomes"].items())))
    print(f"{result['preemptions']} preemptions, {result['steps']} steps")
    print("\n".join(result["faults"]) or "nothing was lost")
    write_json(arguments.json, result)
    return result


if __name__ == "__main__":
    sys.exit(bool(main()["faults"]))
