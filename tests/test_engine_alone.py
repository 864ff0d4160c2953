"""What belongs to one request ends that request alone: faults at every stage, memory, deadlines, namespaces."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mdinfer
from mdinfer import Caption, Detect, Engine, Point, Query, Result, flight
from mdinfer.request import Request
from mdinfer.step_plan import Chunk, StepPlan
from tests.golden_data import image_file, load_engine
from tests.waiting import wait_for, wait_idle

PICTURE = image_file("images/p_100x80.png")
OTHER = image_file("images/p_1280x720.png")
TARGET = 13  # of 32


class FaultError(Exception):
    pass


def many() -> list[Request]:
    """32 of all kinds; the target's picture is its own, so that nobody else needs it."""
    kinds: list[Callable[[int], Request]] = [
        lambda i: Query(question=f"cat {i % 5}?", temperature=0, max_tokens=4 + i % 9),
        lambda i: Query(image=PICTURE, question=f"{i % 3}?", temperature=0, max_tokens=6),
        lambda i: Detect(image=PICTURE, object="cat", max_objects=2),
        lambda i: Query(question="why?", reasoning=True, temperature=0, max_tokens=10),
        lambda i: Point(image=PICTURE, object="cat", max_objects=3),
        lambda i: Query(question="drawn?", temperature=1, seed=i, max_tokens=8),
        lambda i: Caption(image=PICTURE, length="short", temperature=0, max_tokens=5),
    ]
    made = [kinds[i % len(kinds)](i) for i in range(32)]
    made[TARGET] = Query(image=OTHER, question="what?", temperature=0, max_tokens=7)
    return made


def outcome(result: Result) -> tuple[Any, ...]:
    return result.token_ids, result.text, result.reasoning, result.objects, result.points, result.finish_reason


@pytest.fixture(scope="module")
def expected() -> list[tuple[Any, ...]]:
    with load_engine("tiny-a") as engine:
        return [outcome(result) for result in engine.generate(many())]


def _of_target(chunk: Chunk) -> bool:
    """It is the only one with a picture that may take 8 positions more than its prompt."""
    sequence = chunk.sequence
    return bool(sequence.pictures) and sequence.max_positions - len(sequence.prompt) == 8


class Saboteur:
    """Raises in the middle of every step whose plan has a chunk of the target that `when` says."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch, when: Callable[[StepPlan, Chunk], bool]) -> None:
        self._runner, self._when = engine._loop._runner, when
        self._launch, self.armed, self.struck = self._runner.launch, False, 0
        self.error: Exception = FaultError("with a secret in its message")
        patch.setattr(self._runner, "launch", self)

    def __call__(self, plan: StepPlan, *, sparing: bool = False) -> Any:
        self.armed = any(_of_target(chunk) and self._when(plan, chunk) for chunk in plan.chunks)
        try:
            return self._launch(plan, sparing=sparing)
        finally:
            self.armed = False

    def spoil(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Have a function raise while armed."""
        true = getattr(owner, name)

        def spoilt(*args: Any, **options: Any) -> Any:
            if self.armed:
                self.struck += 1
                raise self.error
            return true(*args, **options)

        patch.setattr(owner, name, spoilt)


def prefills(plan: StepPlan, chunk: Chunk) -> bool:
    return chunk in plan.prefill


def decodes(plan: StepPlan, chunk: Chunk) -> bool:
    """Also where the step is done over, when its rows go as a prompt's."""
    return chunk.start > len(chunk.sequence.prompt) + 1


def sabotage(engine: Engine, patch: pytest.MonkeyPatch, stage: str) -> Saboteur:
    when = decodes if stage in ("decode", "sampling late") else prefills
    saboteur = Saboteur(engine, patch, when)
    model = engine._loop._runner.model
    owner, name = {
        "encode": (model.vision, "forward"),
        "prefill": (model, "embed"),
        "decode": (model.text, "forward"),
        "values": (model.text, "logits"),
        "sampling": (__import__("mdinfer.runner").runner, "sample"),
        "sampling late": (__import__("mdinfer.runner").runner, "sample"),
    }[stage]
    saboteur.spoil(patch, owner, name)
    return saboteur


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
@pytest.mark.parametrize("stage", ["encode", "prefill", "decode", "values", "sampling", "sampling late"])
def test_one_of_many_fails_alone(
    stage: str, overlap: bool, expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_engine("tiny-a", overlap=overlap) as engine:
        saboteur = sabotage(engine, monkeypatch, stage)
        handles = [engine.submit(request) for request in many()]
        with pytest.raises(mdinfer.RequestFailedError, match="FaultError") as caught:
            handles[TARGET].result(timeout=60)
        assert "secret" not in str(caught.value)
        assert saboteur.struck >= 2  # together with others, then alone
        check_others(handles, expected)
        monkeypatch.undo()
        assert outcome(engine.generate([many()[TARGET]])[0]) == expected[TARGET]
        wait_idle(engine)


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
@pytest.mark.parametrize("struck", [1, 3, 5])
def test_a_step_that_fails_after_its_work_is_done_over(
    struck: int, overlap: bool, expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the device would feed into the next step has changed by then."""
    true, calls = flight._host_copies, list[int]()

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == struck:
            raise MemoryError
        return true(*args)

    with load_engine("tiny-a", overlap=overlap) as engine:
        monkeypatch.setattr(flight, "_host_copies", fails)
        assert [outcome(result) for result in engine.generate(many())] == expected
        assert len(calls) > struck
        wait_idle(engine)


def assert_opened(gate: threading.Event) -> None:
    assert gate.wait(60)


def check_others(handles: list[mdinfer.RequestHandle], expected: list[tuple[Any, ...]]) -> None:
    for i, handle in enumerate(handles):
        if i != TARGET:
            assert outcome(handle.result(timeout=60)) == expected[i], i


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
@pytest.mark.parametrize("stage", ["reading", "telling", "numbers"])
def test_one_of_many_fails_alone_beside_the_step(
    stage: str, overlap: bool, expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise FaultError("with a secret in its message")

    with load_engine("tiny-a", overlap=overlap) as engine:
        if stage == "reading":
            read = engine._prepare
            monkeypatch.setattr(engine, "_prepare", lambda p, n: broken() if p.source == OTHER else read(p, n))
        gate = threading.Event()
        engine._loop._send(lambda: assert_opened(gate), broken)  # nothing runs before all is prepared
        handles = [engine.submit(request) for request in many()]
        target = engine._tasks[handles[TARGET]] if stage != "reading" else None
        if target is not None and stage == "telling":
            monkeypatch.setattr(target.compiled.output, "push", broken)
        if target is not None and stage == "numbers":
            wait_for(lambda: bool(target.ready), "the picture is read")
            shape = engine.config.vision.positions, engine.config.text.dim
            target.sequence.pictures[0].encode(torch.full(shape, float("nan")))
        gate.set()
        with pytest.raises(
            mdinfer.RequestFailedError, match="finite" if stage == "numbers" else "FaultError"
        ) as caught:
            handles[TARGET].result(timeout=60)
        assert "secret" not in str(caught.value)
        check_others(handles, expected)
        assert engine.healthy
        wait_idle(engine)


# Memory


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_memory_that_suffices_for_less_fails_nobody(
    kind: type[Exception], expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one crop at a time is too much: the picture is seen crop by crop."""
    with load_engine("tiny-a") as engine:
        tower = engine._loop._runner.model.vision
        crop_features, most = tower.crop_features, list[int]()

        def little(crops: torch.Tensor) -> torch.Tensor:
            if len(crops) > 1:
                raise kind
            most.append(len(crops))
            return crop_features(crops)

        monkeypatch.setattr(tower, "crop_features", little)
        results = engine.generate(many())
        assert [outcome(result) for result in results] == expected
        assert len(most) >= 4  # two pictures, two crops or more each
        assert engine.encode_image(PICTURE).features().isfinite().all()
        wait_idle(engine)


def test_memory_that_does_not_suffice_fails_one(
    expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_engine("tiny-a") as engine:
        saboteur = sabotage(engine, monkeypatch, "prefill")
        saboteur.error = MemoryError()
        handles = [engine.submit(request) for request in many()]
        with pytest.raises(mdinfer.OutOfMemoryError, match="also alone"):
            handles[TARGET].result(timeout=60)
        assert saboteur.struck == 3  # with others, alone, sparing
        check_others(handles, expected)
        wait_idle(engine)


def test_memory_that_suffices_once_what_failed_is_let_go(
    expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower fails with others' pictures, the decoder with this one's encoded: then nothing of either is held."""
    with load_engine("tiny-a") as engine:
        model = engine._loop._runner.model
        see, decode, held = model.vision.forward, model.text.forward, list[weakref.ref[torch.Tensor]]()

        def failing(what: str, times: int, true: Callable[..., Any]) -> Callable[..., Any]:
            def fail(*args: Any) -> Any:
                assert not any(ref() is not None for ref in held), f"{what} is tried again beside what failed before"
                if len(held) < times:
                    taken = torch.zeros(8)
                    held.append(weakref.ref(taken))
                    raise MemoryError
                return true(*args)

            return fail

        monkeypatch.setattr(model.vision, "forward", failing("vision", 1, see))
        monkeypatch.setattr(model.text, "forward", failing("text", 2, decode))
        assert outcome(engine.submit(many()[TARGET]).result(timeout=60)) == expected[TARGET]
        assert len(held) == 2
        wait_idle(engine)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Triton Error [CUDA]: out of memory"), mdinfer.OutOfMemoryError),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), mdinfer.OutOfMemoryError),
        (RuntimeError("shapes do not match"), mdinfer.RequestFailedError),
    ],
    ids=["triton", "cublas", "other"],
)
def test_what_counts_as_a_lack_of_memory(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_engine("tiny-a") as engine:

        def fail(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(engine._loop._runner.model.text, "forward", fail)
        with pytest.raises(mdinfer.RequestFailedError) as caught:
            engine.query(None, "?", max_tokens=2)
        assert type(caught.value) is kind
        wait_idle(engine)


# Deadlines


@pytest.fixture
def endless() -> Any:
    """No answer ends by itself; one runs at a time."""
    with load_engine("tiny-a", max_batch_size=1, overlap=True) as engine:
        engine._loop._runner.model.text.lm_head.bias[engine.config.tokenizer.eos_id] = -1e4
        yield engine


LONG = Query(question="What is this?", temperature=0, max_tokens=3000)


def test_a_deadline_ends_a_running_and_a_waiting_request(endless: Engine) -> None:
    running, waiting = endless.submit(LONG, timeout=0.6), endless.submit(LONG, timeout=0.3)
    with pytest.raises(mdinfer.DeadlineError, match=r"within its timeout of 0\.3 s"):
        waiting.result(timeout=10)
    assert not running.done
    with pytest.raises(mdinfer.DeadlineError, match=r"0\.6 s"):
        list(running)
    assert len(running._events) > 3
    wait_idle(endless)
    assert not endless._loop._timed


def test_a_deadline_ends_a_request_whose_picture_is_still_read(
    endless: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has nothing else to wake it."""
    go_on = threading.Event()
    monkeypatch.setattr(endless, "_prepare", lambda *_: go_on.wait(30))
    handle = endless.submit(Query(image=PICTURE, question="?"), timeout=0.2)
    with pytest.raises(mdinfer.DeadlineError):
        asyncio.run(handle.aresult())
    go_on.set()
    wait_idle(endless)


def test_a_stream_takes_a_deadline(endless: Engine) -> None:
    async def main() -> int:
        return len([event async for event in endless.astream(LONG, timeout=0.3)])

    with pytest.raises(mdinfer.DeadlineError, match=r"0\.3 s"):
        list(endless.stream(LONG, timeout=0.3))
    with pytest.raises(mdinfer.DeadlineError, match=r"0\.3 s"):
        asyncio.run(main())


def test_a_deadline_that_is_met_leaves_nothing(endless: Engine) -> None:
    short = Query(question="?", temperature=0, max_tokens=2)
    assert endless.submit(short, timeout=600).result(timeout=10).token_ids
    wait_idle(endless)
    assert not endless._loop._timed
    with pytest.raises(mdinfer.DeadlineError):
        endless.submit(short, timeout=0).result(timeout=10)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 1 << 40}, "priority"),
        ({"namespace": None}, "namespace"),
        ({"namespace": "\ud800"}, "namespace"),
    ],
)
def test_wrong_options_of_a_request(endless: Engine, options: dict[str, Any], param: str) -> None:
    with pytest.raises(mdinfer.RequestError) as caught:
        endless.submit(LONG, **options)
    assert caught.value.param == param
    wait_idle(endless)


# Priorities, namespaces, counts


def test_a_smaller_priority_goes_first(endless: Engine) -> None:
    first, short = endless.submit(LONG), Query(question="?", temperature=0, max_tokens=2)
    next(iter(first))
    handles = {n: endless.submit(short, priority=p) for n, p in (("usual", 0), ("late", 5), ("urgent", -5))}
    wait_for(lambda: endless.stats().waiting == 3, "all wait")
    first.cancel()
    waited = {name: handle.result(timeout=30).metrics.queue_s for name, handle in handles.items()}
    assert sorted(waited, key=lambda name: waited[name]) == ["urgent", "usual", "late"]


def test_a_priority_of_numpys_is_a_number_like_any_other(endless: Engine) -> None:
    """Though those without a sign cannot be negated."""
    handle = endless.submit(LONG, priority=np.uint8(5))
    [task] = endless._tasks.values()
    assert task.sequence.rank == (5, task.sequence.arrival)
    assert type(task.sequence.priority) is int
    handle.cancel()
    wait_idle(endless)


def test_namespaces_share_nothing_and_one_shares_what_it_had() -> None:
    request = Query(image=PICTURE, question="What is this?", temperature=0, max_tokens=3)
    with load_engine("tiny-a") as engine:
        first = engine.submit(request, namespace="a").result(timeout=30)
        other = engine.submit(request, namespace="b").result(timeout=30)
        again = engine.submit(request, namespace="a").result(timeout=30)
        assert [r.usage.cached_tokens for r in (first, other)] == [0, 0]
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert outcome(first) == outcome(other) == outcome(again)
        assert engine.stats().images_encoded == 2
        assert first.metrics.vision_s > 0
        assert again.metrics.vision_s == 0


def test_counts() -> None:
    with load_engine("tiny-a") as engine:
        results = engine.generate(many())
        wait_idle(engine)
        stats = engine.stats()
        assert stats.images_encoded == 2
        assert stats.prompt_tokens == sum(r.usage.prompt_tokens for r in results)
        assert stats.prefix_queries == stats.prompt_tokens
        assert stats.prefix_hits == sum(r.usage.cached_tokens for r in results) > 0
        assert stats.generation_tokens >= sum(r.usage.completion_tokens for r in results)
        assert stats.steps >= max(r.usage.completion_tokens for r in results)
        assert stats.running == stats.waiting == 0
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        assert stats.pages_cached > 0


# What a caller may do


def test_an_engine_dropped_in_the_middle_of_an_answer_goes_with_it() -> None:
    """Its last reference ends on the thread that tells the answer."""
    before = set(threading.enumerate())
    engine = load_engine("tiny-a")
    model = weakref.ref(engine._loop._runner.model)
    handle = engine.submit(Query(question="cat?", temperature=0, max_tokens=60))
    del engine
    assert handle.result(timeout=30).token_ids
    wait_for(lambda: gc.collect() >= 0 and model() is None, "the model is freed")
    wait_for(lambda: not {t for t in set(threading.enumerate()) - before if t.is_alive()}, "the threads end")


def test_requests_go_on_beside_pictures_encoded_without_pause() -> None:
    """And deadlines pass."""
    with load_engine("tiny-a") as engine:
        stop = threading.Event()

        def encode() -> None:
            while not stop.is_set():
                engine.encode_image(PICTURE).close()

        threads = [threading.Thread(target=encode) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            assert engine.query(None, "cat?", temperature=0, max_tokens=4).token_ids
            with pytest.raises(mdinfer.DeadlineError):
                engine.submit(LONG, timeout=0.2).result(timeout=30)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        wait_idle(engine)


def test_an_object_of_the_callers_that_breaks_out_fails_its_request(endless: Engine) -> None:
    class Leaving:
        def __fspath__(self) -> str:
            raise SystemExit

    with pytest.raises(mdinfer.RequestFailedError, match="SystemExit"):
        endless.submit(Query(image=Leaving(), question="?")).result(timeout=10)
    wait_idle(endless)


def test_an_encoded_image_may_be_closed_once_its_request_is_submitted(endless: Engine) -> None:
    with endless.encode_image(PICTURE) as image:
        handle = endless.submit(Query(image=image, question="?", temperature=0, max_tokens=2))
    assert len(handle.result(timeout=10).token_ids) == 2
    with pytest.raises(mdinfer.ImageError, match="closed"):
        endless.submit(Query(image=image, question="?"))


def test_an_encoded_image_is_its_engines_own(endless: Engine) -> None:
    with load_engine("tiny-a") as other:
        image = other.encode_image(PICTURE)
        with pytest.raises(mdinfer.ImageError, match="another engine"):
            endless.submit(Query(image=image, question="?"))
    wait_idle(endless)


def test_the_first_error_of_many_cancels_the_rest(endless: Engine) -> None:
    async def main() -> None:
        await endless.agenerate([Query(image=b"no picture", question="?"), *[LONG] * 20])

    with pytest.raises(mdinfer.ImageError):
        asyncio.run(main())
    wait_idle(endless)


def test_a_wait_may_be_for_ever(endless: Engine) -> None:
    short = Query(question="?", temperature=0, max_tokens=2)
    for timeout in (float("inf"), 1e10):
        assert endless.submit(short).result(timeout=timeout).token_ids
