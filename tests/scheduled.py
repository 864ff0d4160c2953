"""A scheduler at work without a model: requests to make up, and a loop that keeps an eye on everything it holds."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from mdinfer.decode_table import State
from mdinfer.image import Crops
from mdinfer.pages import PagePool
from mdinfer.pictures import LoadedPicture
from mdinfer.prefill_step import StepBudget
from mdinfer.prefix_cache import PrefixCache
from mdinfer.prompts import Prompt, PromptBuilder
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SampledToken, SamplingParams, Sequence
from mdinfer.step_plan import StepPlan
from tests.fake_runner import EOS, FOLLOWS, FakeFlight, FakeRunner

PAGE = 4
IMAGE = 6  # positions of an image


def picture(name: str, crops: int = 2) -> LoadedPicture:
    digest = hashlib.sha256(name.encode()).digest()
    pixels = np.zeros((crops, 1, 1, 3), np.uint8)
    return LoadedPicture(
        digest=digest, crops=Crops(pixels=pixels, tiling=(1, crops - 1), width=1, height=1, digest=digest)
    )


def prompt_of(parts: Iterable[str | int], image_positions: int = IMAGE) -> Prompt:
    """Parts are tokens, "image", "point" or "box"."""
    builder = PromptBuilder(0, image_positions)
    for part in parts:
        if isinstance(part, int):
            builder.text([part])
        elif part == "image":
            builder.image()
        else:
            builder.spatial_ref((0.25, 0.5) if part == "point" else (0.1, 0.2, 0.4, 0.7), 5, 6)
    return builder.build()


def sequence(
    parts: Iterable[str | int],
    pictures: Iterable[LoadedPicture] = (),
    *,
    more: int = 8,
    state: State = State.ANSWER,
    namespace: str = "",
    priority: int = 0,
) -> Sequence:
    """`more` positions may be sampled."""
    prompt = prompt_of(parts)
    return Sequence(
        prompt=prompt,
        pictures=list(pictures),
        state=state,
        sampling=SamplingParams(),
        max_positions=len(prompt) + more,
        namespace=namespace,
        priority=priority,
    )


def text(length: int, *, first: int = 20, more: int = 8, priority: int = 0, namespace: str = "") -> Sequence:
    """A prompt of `length` positions, the same for the same `first`."""
    parts = [first + i % 7 for i in range(length - 1)]
    return sequence(parts, more=more, priority=priority, namespace=namespace)


class Loop:
    """What the engine's loop does: plan, launch, read, commit, finish.

    `overlap` launches a step before the last one is read.
    """

    def __init__(
        self,
        *,
        pages: int = 200,
        slots: int = 8,
        prefill_tokens: int = 1000,
        vision_crops: int = 100,
        cache: bool = True,
        overlap: bool = False,
    ) -> None:
        pool = PagePool(pages, PAGE)
        self.scheduler = Scheduler(
            pool,
            PrefixCache(pool) if cache else None,
            FOLLOWS,
            max_batch_size=slots,
            budget=StepBudget(prefill_tokens=prefill_tokens, vision_crops=vision_crops),
        )
        self.pool, self.slots = pool, slots
        self.runner = FakeRunner(pages, PAGE, max_batch_size=slots)
        self.overlap = overlap
        self.flights: deque[tuple[StepPlan, FakeFlight]] = deque()
        self.answers: dict[Sequence, list[SampledToken]] = {}

    def add(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.add(one)

    def step(self) -> StepPlan | None:
        """Launch the next step, and read those that may be read now."""
        plan = self.scheduler.plan()
        if plan is not None:
            self.flights.append((plan, self.runner.launch(plan)))
        while len(self.flights) > (self.overlap and plan is not None):
            self.read()
        return plan

    def read(self) -> None:
        plan, flight = self.flights.popleft()
        for one, token in self.scheduler.commit(plan, flight.read().tokens):
            if token.token == EOS or one.length >= one.max_positions:
                assert one not in self.answers, "ended twice"
                self.answers[one] = list(one.sampled)
                self.scheduler.finish(one)

    def run(self, *sequences: Sequence, steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        self.add(*sequences)
        while self.step() is not None or self.flights or self.busy:
            steps -= 1
            assert steps > 0, "it does not come to an end"

    @property
    def busy(self) -> bool:
        scheduler = self.scheduler
        return bool(scheduler.running or len(scheduler.waiting) or len(scheduler.leaders))

    def check(self) -> None:
        """Pages are held by those that run and by the cache, slots by those that run."""
        scheduler = self.scheduler
        refs = Counter(page for one in scheduler.running for page in one.pages)
        assert all(self.pool.refs(page) == refs[page] for page in range(self.pool.count))
        kept = sum(self.pool.kept(page) > 0 for page in range(self.pool.count))
        assert kept == 0 or scheduler.cache is not None
        slots = [one.slot for one in scheduler.running] + scheduler._slots
        assert sorted(slots) == list(range(self.slots))
        assert [one.rank for one in scheduler.running] == sorted(one.rank for one in scheduler.running)
        assert all(one.slot < 0 and not one.pages and not one.in_flight for one in scheduler.waiting)

    def check_idle(self) -> None:
        """Nobody runs or waits, and all pages are free or can be."""
        self.check()
        assert not self.busy and not self.flights and not self.scheduler._prefilling
        assert self.pool.free + self.pool.idle == self.pool.count
        assert not any(self.pool.refs(page) for page in range(self.pool.count))
        if self.scheduler.cache is not None:
            self.scheduler.cache.evict(self.pool.count)
        assert self.pool.free == self.pool.count
