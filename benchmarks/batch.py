"""Sequences that prefill and then decode side by side, without the engine's threads around them.

Owns the scheduler, the runner and the cache they need. Works on a model without values, too, where no step is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

import numpy as np
import torch

from benchmarks.precisions import KV_TYPES
from mdinfer.decode_table import State
from mdinfer.flight import Flight
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.pages import PagePool
from mdinfer.pictures import LoadedPicture
from mdinfer.prefill_step import StepBudget
from mdinfer.prefix_cache import PrefixCache
from mdinfer.prompts import PromptBuilder
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SampledToken, SamplingParams, Sequence
from mdinfer.step_plan import StepPlan

PAGE_SIZE = 32
WORD = SampledToken(20, 0, (0.0, 0.0))  # some token of text


class Batch:
    """`size` sequences of random text; the first step prefills all of them, later ones decode.

    prompt    positions, of which a picture takes its own where `image`; pictures are encoded already
    tokens    that each may decode
    graphs    run decoding steps as the engine does on a GPU
    """

    def __init__(
        self,
        model: Moondream,
        size: int,
        prompt: int,
        tokens: int,
        *,
        seed: int = 0,
        kv: str = "auto",
        image: bool = False,
        graphs: bool = False,
        two_streams: bool = False,
    ) -> None:
        config = model.config
        self.model, self.size, self._image, self._most = model, size, image, prompt + tokens + 1
        # Twice the room with pictures, for `again` leaves the first ones' pages in the prefix cache.
        pages = size * -(-self._most // PAGE_SIZE) * (2 if image else 1)
        self.cache = KVCache.allocate(
            config.text, pages=pages, page_size=PAGE_SIZE, dtype=KV_TYPES.get(kv, model.dtype), device=model.device
        )
        for pages_of in (self.cache.k, self.cache.v):  # as in an engine at work, and as a rival's, memory is there
            pages_of.zero_()
        self.runner = Runner(
            model, self.cache, max_batch_size=size, vision_crops=13, graphs=graphs, two_streams=two_streams
        )
        pool = PagePool(pages, PAGE_SIZE)
        self.scheduler = Scheduler(
            pool,
            PrefixCache(pool) if image else None,
            self.runner.follows,
            max_batch_size=size,
            budget=StepBudget(prefill_tokens=1 << 20, vision_crops=13),
        )
        self._draw = np.random.default_rng(seed)
        self._flights: deque[tuple[StepPlan, Flight]] = deque()
        self._sequences: list[Sequence] = []
        self._pictures: list[LoadedPicture] = []
        if image:
            rows = (config.vision.positions, config.text.dim)
            features = [torch.zeros(rows, dtype=model.dtype, device=model.device) for _ in range(size)]
            names = (i.to_bytes(32, "little") for i in range(size))
            self._pictures = [LoadedPicture(digest=n, features=f) for n, f in zip(names, features, strict=True)]
        self._add(prompt)

    def _add(self, prompt: int) -> None:
        positions = self.model.config.vision.positions if self._image else 0
        for i in range(self.size):
            built = PromptBuilder(0, positions)
            if self._image:
                built = built.image()
            words = prompt - 1 - positions
            ids = self._draw.integers(16, self.model.config.text.vocab_size, words).tolist()
            self._sequences.append(
                Sequence(
                    prompt=built.text(ids).build(),
                    pictures=self._pictures[i : i + 1],
                    state=State.ANSWER,
                    sampling=SamplingParams(),
                    max_positions=self._most,
                )
            )
            self.scheduler.add(self._sequences[-1])

    def again(self, prompt: int) -> None:
        """End all sequences and add as many others, with other words about the same pictures."""
        while self._flights:
            self._land()
        for sequence in self._sequences:
            self.scheduler.finish(sequence)
        self._sequences.clear()
        self._add(prompt)

    def step(self) -> None:
        """Plan, launch, read, commit."""
        self.begin()
        while self._flights:
            self._land()

    def step_ahead(self) -> None:
        """Launch a step and read the one before it, as an engine that overlaps them does."""
        self.begin()
        while len(self._flights) > 1:
            self._land()

    def begin(self) -> None:
        plan = self.plan()
        self._flights.append((plan, self.runner.launch(plan)))

    def _land(self) -> None:
        plan, flight = self._flights.popleft()
        self.scheduler.commit(plan, flight.read().tokens)

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan()
        assert plan is not None
        return plan

    def commit(self, plan: StepPlan, tokens: Seq[SampledToken] | None = None) -> None:
        """Without `tokens`, each sequence sampled some word."""
        self.scheduler.commit(plan, tokens or [WORD] * sum(chunk.samples for chunk in plan.chunks))
