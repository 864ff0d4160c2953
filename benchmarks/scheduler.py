"""What a step costs in Python: planning it and taking in its tokens, without a model.

    python -m benchmarks.scheduler
    python -m benchmarks.scheduler --batch 8 64 256 --steps 2000 --json out.json

Sequences decode side by side, each from a prompt of one picture and some text, so a page is full every 32 steps;
then they end and as many others come. `steady` are the steps in which all decode and none needs a page, `growing`
those in which some do, `turnover` those in which some end or begin.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import numpy as np
import torch

from benchmarks.report import environment, table, write_json
from mdinfer.config import TokenConfig
from mdinfer.decode_table import State, decode_table
from mdinfer.pages import PagePool
from mdinfer.pictures import LoadedPicture
from mdinfer.prefill_step import StepBudget
from mdinfer.prefix_cache import PrefixCache
from mdinfer.prompts import PromptBuilder
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SampledToken, SamplingParams, Sequence

PAGE_SIZE = 32
PAGES = 20_000
IMAGE = 729
PICTURES = 50


class Course:
    """`batch` sequences at a time on a pool that the cache fills in the end."""

    def __init__(self, batch: int, *, cache: bool, seed: int = 0) -> None:
        pool = PagePool(PAGES, PAGE_SIZE)
        self._rng = random.Random(seed)
        self._pool, self._batch = pool, batch
        self._scheduler = Scheduler(
            pool,
            PrefixCache(pool) if cache else None,
            decode_table(TokenConfig()).follows.tolist(),
            max_batch_size=batch,
            budget=StepBudget(prefill_tokens=4096, vision_crops=13),
        )
        self._features = torch.zeros(1)

    def run(self, steps: int) -> dict[str, list[float]]:
        """Milliseconds of Python of each step, by its kind."""
        found: dict[str, list[float]] = {"steady": [], "growing": [], "turnover": []}
        scheduler, pool = self._scheduler, self._pool
        token = SampledToken(20, 0, (0.0, 0.0))
        self._fill()
        for _ in range(steps):
            free = pool.free + pool.idle
            start = time.perf_counter()
            plan = scheduler.plan()
            assert plan is not None
            sampling = sum(chunk.samples for chunk in plan.prefill) + len(plan.decode)
            middle = time.perf_counter()
            grown = pool.free + pool.idle != free
            tokens = [token] * sampling
            again = time.perf_counter()
            ended = [one for one, _ in scheduler.commit(plan, tokens) if one.length >= one.max_positions]
            for one in ended:
                scheduler.finish(one)
            end = time.perf_counter()
            kind = "turnover" if plan.prefill or ended else "growing" if grown else "steady"
            found[kind].append((middle - start + end - again) * 1e3)
            self._fill()
        return found

    def _fill(self) -> None:
        """As many wait as run."""
        while len(self._scheduler.running) + len(self._scheduler.waiting) < 2 * self._batch:
            words = [self._rng.randint(16, 40_000) for _ in range(self._rng.randint(8, 40))]
            prompt = PromptBuilder(0, IMAGE).image().text(words).build()
            name = self._rng.randrange(PICTURES).to_bytes(32, "little")
            self._scheduler.add(
                Sequence(
                    prompt=prompt,
                    pictures=[LoadedPicture(digest=name, features=self._features)],
                    state=State.ANSWER,
                    sampling=SamplingParams(),
                    max_positions=len(prompt) + self._rng.randint(200, 400),
                )
            )


def measure(batch: int, steps: int, *, cache: bool) -> list[dict[str, Any]]:
    course = Course(batch, cache=cache)
    course.run(batch + 40)  # until all run
    rows = []
    for kind, times in course.run(steps).items():
        if times:
            p50, p99 = np.percentile(times, [50, 99])
            rows.append(
                {"batch": batch, "cache": "on" if cache else "off", "step": kind, "steps": len(times)}
                | {"p50_ms": float(p50), "p99_ms": float(p99)}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Python's share of a step")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    rows = [
        row
        for batch in arguments.batch
        for cache in (False, True)
        for row in measure(batch, arguments.steps, cache=cache)
    ]
    columns = ["batch", "cache", "step", "steps", "p50_ms", "p99_ms"]
    print(table(columns, [[f"{v:.3f}" if isinstance(v := row[c], float) else v for c in columns] for row in rows]))
    write_json(arguments.json, {"environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
