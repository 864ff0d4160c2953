"""The protocol between scheduler and runner, held to by the real one and by the one without a model alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from mdinfer.decode_table import State
from mdinfer.image import Crops, open_picture
from mdinfer.model.batch import KVCache
from mdinfer.pages import PagePool
from mdinfer.prefill_step import StepBudget
from mdinfer.prefix_cache import PrefixCache
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SampledToken, SamplingParams, Sequence
from mdinfer.step_plan import StepPlan
from mdinfer.uncut import UncutRoom
from tests.fake_runner import FakeRunner
from tests.golden_data import model
from tests.scheduled import picture, prompt_of

PAGE, SLOTS, PAGES = 16, 8, 500
EOS = 0
CPU = torch.device("cpu")

Answers: TypeAlias = dict[str, list[SampledToken]]


def fake_runner() -> Any:
    return FakeRunner(PAGES, PAGE, max_batch_size=SLOTS)


def real_runner(*, graphs: bool = False) -> Any:
    """On a cache of NaN: what was never written shows."""
    built = model("tiny-a")
    cache = KVCache.allocate(built.config.text, pages=PAGES, page_size=PAGE, dtype=torch.float32, device=CPU)
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    return Runner(built, cache, max_batch_size=SLOTS, vision_crops=4, graphs=graphs)


def fixed_runner() -> Any:
    """On fixed buffers: every step that only decodes, without log-probabilities, and every vision pass."""
    runner = real_runner(graphs=True)
    runner.record_graphs(progress=False)
    launch, graphs = runner.launch, runner._decode
    runs, run = list[StepPlan](), graphs.run

    def noting(plan: StepPlan, needs: Any) -> Any:
        runs.append(plan)
        return run(plan, needs)

    def checked(plan: StepPlan, **options: Any) -> Any:
        runs.clear()
        flight = launch(plan, **options)
        wanted = [chunk.sequence.sampling.logprobs for chunk in plan.decode]
        assert runs == ([plan] if not plan.prefill and not any(w is not None for w in wanted) else [])
        return flight

    graphs.run, runner.launch = noting, checked
    return runner


@pytest.fixture(params=[fake_runner, real_runner, fixed_runner], ids=["fake", "real", "fixed"])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    made: Callable[[], Any] = request.param
    return made


class Course:
    """Sequences by name, through a scheduler and a runner, by whichever way of running steps."""

    def __init__(self, runner: Any, **budget: int) -> None:
        self.runner = runner
        pool = PagePool(PAGES, PAGE)
        table = model("tiny-a").config
        follows = Runner(model("tiny-a"), _no_cache(), max_batch_size=1, vision_crops=1).follows
        assert table.tokenizer.eos_id == EOS
        self.scheduler = Scheduler(
            pool,
            PrefixCache(pool),
            follows,
            max_batch_size=SLOTS,
            budget=StepBudget(**{"prefill_tokens": 4096, "vision_crops": 26, **budget}),
        )
        self.names: dict[Sequence, str] = {}
        self.answers: Answers = {}
        self.plans: list[StepPlan] = []

    def add(self, name: str, parts: list[str | int], shown: tuple[str, ...] = (), **options: Any) -> None:
        images = model("tiny-a").config.vision.positions
        prompt = prompt_of(parts, images)
        one = Sequence(
            prompt=prompt,
            pictures=[_picture(s) for s in shown],
            state=options.get("state", State.ANSWER),
            sampling=SamplingParams(**options.get("sampling", {})),
            max_positions=len(prompt) + options.get("more", 6),
        )
        self.names[one] = name
        self.scheduler.add(one)

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.plans.append(plan)
        return plan

    def commit(self, plan: StepPlan, tokens: list[SampledToken]) -> None:
        assert len(tokens) == sum(chunk.samples for chunk in plan.chunks)
        for one, token in self.scheduler.commit(plan, tokens):
            assert token.sound
            if token.token == EOS or one.length >= one.max_positions:
                self.answers[self.names[one]] = list(one.sampled)
                self.scheduler.finish(one)

    def run(self, *, overlap: int = 0, twice: bool = False, singly: bool = False) -> Answers:
        """`overlap` steps are launched before one is read; twice: a step without decoding rows is done over; singly: in
        parts, which have none.
        """
        flights: deque[tuple[StepPlan, Any]] = deque()
        while True:
            plan = self.plan()
            for part in () if plan is None else plan.singly() if singly else (plan,):
                if twice and not part.decode:
                    self.runner.launch(part)
                    for shown in part.pictures:
                        assert shown.encoded
                flights.append(
                    (part, self.runner.launch(_without_pictures(part) if twice and not part.decode else part))
                )
            while len(flights) > (overlap if plan is not None else 0):
                part, flight = flights.popleft()
                self.commit(part, flight.read().tokens)
            if plan is None:
                return self.answers


def _without_pictures(plan: StepPlan) -> StepPlan:
    """The plan once its pictures are encoded."""
    return StepPlan(prefill=plan.prefill, decode=plan.decode)


def _no_cache() -> KVCache:
    return KVCache.allocate(model("tiny-a").config.text, pages=1, page_size=PAGE, dtype=torch.float32, device=CPU)


def _picture(name: str) -> Any:
    """One crop of one tile, all of a shade."""
    made = picture(name)
    side = model("tiny-a").config.vision.crop_size
    shade = sum(name.encode()) % 251
    pixels = torch.full((2, side, side, 3), shade, dtype=torch.uint8).numpy()
    made.crops = Crops(pixels=pixels, tiling=(1, 1), width=side, height=side, digest=made.digest)
    return made


def work(course: Course) -> Course:
    """Text of several lengths around a page, two that share a beginning, pictures, values, draws, logprobs."""
    course.add("short", [21])
    course.add("page", [20 + i % 9 for i in range(PAGE - 1)])
    course.add("longer", [20 + i % 7 for i in range(2 * PAGE + 1)])
    course.add("image", ["image", 22, 23], ("a",))
    course.add("boxes", ["image", 24], ("a",), state=State.DETECT_X)
    course.add("points", ["image", 25], ("b",), state=State.POINT_X, more=4)
    course.add("trace", [26, 27, 28], state=State.REASONING, more=9)
    course.add("ref", ["image", "box", "point", 29], ("b",))
    course.add("drawn", [30, 31], sampling={"temperature": 1.0, "seed": 5, "logprobs": 2})
    course.add("beginning", [20 + i % 7 for i in range(PAGE + 4)], more=8)
    return course


@pytest.fixture
def expected(make: Callable[[], Any]) -> Answers:
    found = work(Course(make())).run()
    assert len(found) == 10
    assert sum(map(len, found.values())) > 30
    return found


def alike(found: Answers, expected: Answers) -> None:
    """The same tokens, with values and log-probabilities that another batch may sum in another order."""
    assert found.keys() == expected.keys()
    for name, answer in expected.items():
        assert [(t.token, t.kind) for t in found[name]] == [(t.token, t.kind) for t in answer], name
        assert [t.value for t in found[name]] == [t.value for t in answer], name
        for one, other in zip(found[name], answer, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [number for number, _ in one.top] == [number for number, _ in other.top]


@pytest.mark.parametrize("overlap", [1, 2])
def test_steps_launched_before_earlier_ones_are_read(make: Callable[[], Any], expected: Answers, overlap: int) -> None:
    alike(work(Course(make())).run(overlap=overlap), expected)


def test_a_step_that_is_done_over(make: Callable[[], Any], expected: Answers) -> None:
    """Of prompts: one that decodes has changed on the device what it starts from."""
    alike(work(Course(make())).run(twice=True), expected)


def test_a_step_done_one_by_one(make: Callable[[], Any], expected: Answers) -> None:
    alike(work(Course(make())).run(singly=True), expected)


def test_any_step_can_be_done_over_one_by_one(make: Callable[[], Any], expected: Answers) -> None:
    alike(work(Course(make())).run(singly=True, twice=True), expected)


@pytest.mark.parametrize("overlap", [0, 1])
def test_prompts_in_chunks(make: Callable[[], Any], expected: Answers, overlap: int) -> None:
    course = work(Course(make(), prefill_tokens=10, vision_crops=1))
    alike(course.run(overlap=overlap), expected)
    assert any(not chunk.samples for plan in course.plans for chunk in plan.chunks)


def test_a_second_time_out_of_the_cache(make: Callable[[], Any], expected: Answers) -> None:
    """Pages shared whole, the last one copied, pictures known."""
    course = work(Course(make()))
    course.run()
    course.answers.clear()
    before = len(course.plans)
    alike(work(course).run(), expected)
    again = [chunk for plan in course.plans[before:] for chunk in plan.prefill]
    assert sum(chunk.copy is not None for chunk in again) >= 5
    assert sum(chunk.end - chunk.start for chunk in again) == len(again) == 10  # a position each: the last one


def test_features_are_there_once_the_step_is_launched(make: Callable[[], Any]) -> None:
    course = Course(make())
    course.add("image", ["image", 22], ("a",))
    plan = course.plan()
    assert plan is not None
    [shown] = plan.pictures
    assert not shown.encoded
    flight = course.runner.launch(plan)
    assert shown.encoded and shown.crops is None
    assert len(flight.read().tokens) == 1


@pytest.mark.parametrize("graphs", [False, True], ids=["real", "fixed"])
def test_pictures_with_crops_and_whole_ones_go_through_together(graphs: bool) -> None:
    draw, config = np.random.default_rng(0), model("tiny-a").config.vision
    sources = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((30, 20), (300, 700), (9, 50))]
    opened = [open_picture(source, config, exif=False, max_pixels=1 << 20) for source in sources]
    crops, whole = [one.crops() for one in opened], [UncutRoom(CPU).take(one) for one in opened]
    runner = real_runner(graphs=graphs)
    expected = runner.encode(crops)
    for mixed in ([crops[0], whole[1], crops[2]], whole):
        assert all(map(torch.equal, runner.encode(mixed), expected))


def test_a_step_of_chunks_that_do_not_sample_gives_no_token(make: Callable[[], Any]) -> None:
    course = Course(make(), prefill_tokens=5)
    course.add("long", [20 + i % 9 for i in range(12)])
    plan = course.plan()
    assert plan is not None
    assert course.runner.launch(plan).read().tokens == []
    course.commit(plan, [])
    assert len(course.run()["long"]) == 6


def test_sparing_changes_no_answer(make: Callable[[], Any], expected: Answers) -> None:
    course = work(Course(make()))
    launch = course.runner.launch
    course.runner.launch = lambda plan: launch(plan, sparing=True)
    alike(course.run(), expected)
