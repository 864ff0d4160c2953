"""What the engine survives, and how it ends: cancellation at every stage, faults of a step, of the loop, closing.

These tests reach into one engine of their own each; a hang would be caught by a deadline on every wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mdinfer
from mdinfer import Engine, Query, RequestHandle
from mdinfer.flight import Flight
from mdinfer.image import open_picture
from mdinfer.sequence import Sequence
from mdinfer.skills import compile_request
from mdinfer.step_plan import StepPlan
from tests.golden_data import image_file, load_engine
from tests.waiting import wait_for, wait_idle

PICTURE = image_file("images/p_100x80.png")
SOON = 10.0
SHORT = Query(question="cat?", temperature=0, max_tokens=4)
LONG = Query(question="What is this?", temperature=0, max_tokens=2000)


@pytest.fixture(params=[False, True], ids=["in_turn", "overlap"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One slot, so that a second request waits; no answer ends by itself, so that there is time to end it."""
    options = {"max_batch_size": 1, "max_queue": 8, "image_threads": 1, "overlap": request.param}
    with load_engine("tiny-a", **options) as loaded:
        loaded._loop._runner.model.text.lm_head.bias[loaded.config.tokenizer.eos_id] = -1e4
        yield loaded


class Gate:
    """Stands in for the runner's `launch`: holds each step that `stops` says so until it is opened."""

    def __init__(self, engine: Engine, stops: Callable[[StepPlan], bool] = lambda plan: True) -> None:
        self._launch, self._stops = engine._loop._runner.launch, stops
        self.reached, self.opened = threading.Event(), threading.Event()
        engine._loop._runner.launch = self  # type: ignore[method-assign]

    def __call__(self, plan: StepPlan, *, sparing: bool = False) -> Flight:
        if self._stops(plan):
            self.reached.set()
            assert self.opened.wait(SOON)
        return self._launch(plan, sparing=sparing)


@contextmanager
def held(engine: Engine, stops: Callable[[StepPlan], bool] = lambda plan: True) -> Iterator[Gate]:
    gate = Gate(engine, stops)
    try:
        yield gate
    finally:
        gate.opened.set()


def assert_cancelled(handle: RequestHandle) -> None:
    with pytest.raises(mdinfer.RequestCancelledError):
        handle.result(timeout=SOON)
    with pytest.raises(mdinfer.RequestCancelledError):
        list(handle)


# Cancellation


def test_cancelled_while_its_picture_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        reading.set()
        assert go_on.wait(SOON)
        return open_picture(*args, **options)

    monkeypatch.setattr("mdinfer.engine.open_picture", slow)
    scheduler, added = engine._loop._scheduler, list[Sequence]()
    add = scheduler.add

    def recording(sequence: Sequence) -> None:
        added.append(sequence)
        add(sequence)

    monkeypatch.setattr(scheduler, "add", recording)
    handle = engine.submit(Query(image=PICTURE, question="cat?"))
    assert reading.wait(SOON)
    handle.cancel()
    assert_cancelled(handle)  # at once: nobody waits for the picture
    go_on.set()
    wait_for(lambda: engine._readers._idle == 1, "the reader has finished")
    wait_idle(engine)
    assert engine.submit(SHORT).result(timeout=SOON).finish_reason == "length"
    assert [len(sequence.pictures) for sequence in added] == [0]  # the cancelled one never took a step


def test_pictures_are_read_no_further_ahead_than_they_may_be_needed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a slot is as small as it was asked: crops are many times as large as a file."""
    read, prepare = list[object](), engine._prepare

    def counting(*args: Any) -> Any:
        read.append(args)
        return prepare(*args)

    monkeypatch.setattr(engine, "_prepare", counting)
    with held(engine) as gate:
        handles = [engine.submit(Query(image=PICTURE, question="cat?", max_tokens=2)) for _ in range(8)]
        assert gate.reached.wait(SOON)
        wait_for(lambda: len(read) == 3, "one that runs, one for the slot, one for the thread")
        assert (engine.stats().running, engine.stats().waiting) == (1, 7)
        handles[5].cancel()
        time.sleep(0.05)
        assert len(read) == 3
    assert_cancelled(handles.pop(5))
    for handle in handles:
        handle.result(timeout=SOON)
    wait_idle(engine)
    assert not engine._readers._held


def test_a_step_that_does_not_end_is_unhealthy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdinfer.loop.STALL_SECONDS", 0.2)
    time.sleep(0.3)
    assert engine.healthy  # there is nothing to do
    with held(engine) as gate:
        handle = engine.submit(SHORT)
        assert gate.reached.wait(SOON)
        wait_for(lambda: not engine.healthy, "it has lasted too long")
        other = engine.submit(SHORT)  # which is not refused for it
    handle.result(timeout=SOON)
    other.result(timeout=SOON)
    wait_for(lambda: engine.healthy, "it went on")


def test_cancelled_while_waiting_for_a_slot(engine: Engine) -> None:
    running, waiting = engine.submit(LONG), engine.submit(SHORT)
    next(iter(running))
    waiting.cancel()
    assert_cancelled(waiting)
    assert not running.done
    running.cancel()
    assert_cancelled(running)
    wait_idle(engine)


def test_cancelled_in_its_prefill(engine: Engine) -> None:
    with held(engine, lambda plan: bool(plan.prefill)) as gate:
        handle = engine.submit(LONG)
        assert gate.reached.wait(SOON)
        handle.cancel()
        gate.opened.set()
        assert_cancelled(handle)
    wait_idle(engine)


def test_cancelled_in_decode(engine: Engine) -> None:
    with held(engine, lambda plan: bool(plan.decode) and plan.decode[0].end > 20) as gate:
        handle = engine.submit(LONG)
        assert gate.reached.wait(SOON)
        handle.cancel()
        handle.cancel()  # twice is fine
        gate.opened.set()
        assert_cancelled(handle)
    wait_idle(engine)


def test_cancelling_a_finished_request_does_nothing(engine: Engine) -> None:
    handle = engine.submit(SHORT)
    result = handle.result(timeout=SOON)
    handle.cancel()
    assert handle.result(timeout=0) is result
    wait_idle(engine)


def test_leaving_a_stream_cancels_it(engine: Engine) -> None:
    for _ in engine.stream(LONG):
        break
    wait_idle(engine)
    stream = engine.stream(LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_idle(engine)


def test_leaving_an_asynchronous_stream_cancels_it(engine: Engine) -> None:
    async def main() -> None:
        stream = engine.astream(LONG)
        assert (await anext(stream)).result is None
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    wait_idle(engine)


def test_a_cancelled_coroutine_cancels_its_request(engine: Engine) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.aquery(None, "What is this?", temperature=0, max_tokens=2000), 0.05)

    asyncio.run(main())
    wait_idle(engine)


# Queue


def test_a_full_queue_refuses_at_once_and_takes_again_later(engine: Engine) -> None:
    with held(engine):
        handles = [engine.submit(SHORT) for _ in range(9)]  # 8 wait, 1 runs
        started = time.perf_counter()
        with pytest.raises(mdinfer.QueueFullError, match="9 requests wait or run, the limit is 9"):
            engine.submit(SHORT)
        assert time.perf_counter() - started < 1
    assert len({handle.result(timeout=SOON).text for handle in handles}) == 1
    wait_idle(engine)
    assert engine.submit(SHORT).result(timeout=SOON).text


# A fault of a step


class FaultError(Exception):
    pass


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_step_that_raises_fails_its_requests_alone(
    engine: Engine, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.submit(SHORT).result(timeout=SOON).text
    launch, broken = engine._loop._runner.launch, list[bool]()

    def failing(plan: StepPlan) -> Flight:
        if len(broken) < 2 and (broken or (plan.prefill if stage == "prefill" else plan.decode)):
            broken.append(True)  # the second time it is done over
            raise FaultError("with a secret in its message")
        return launch(plan)

    monkeypatch.setattr(engine._loop._runner, "launch", failing)
    first, second = engine.submit(SHORT), engine.submit(SHORT)  # the second waits for the slot
    with pytest.raises(mdinfer.RequestFailedError, match="FaultError") as caught:
        first.result(timeout=SOON)
    assert "secret" not in str(caught.value)
    assert second.result(timeout=SOON).text == expected
    assert engine.healthy
    wait_idle(engine)


def test_running_out_of_memory_fails_a_step_and_no_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = engine._loop._runner.model.vision

    def failing(*args: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(tower, "forward", failing)
        with pytest.raises(mdinfer.OutOfMemoryError, match="also alone"):
            engine.query(PICTURE, "cat?")
        with pytest.raises(mdinfer.OutOfMemoryError, match="also alone"):
            engine.encode_image(PICTURE)
    assert engine.query(PICTURE, "cat?", temperature=0, max_tokens=2).text
    wait_idle(engine)


def test_an_answer_that_cannot_be_decoded_fails_alone() -> None:
    with load_engine("tiny-a") as engine:
        expected = engine.submit(SHORT).result(timeout=SOON).text
        with held(engine):
            handles = [engine.submit(SHORT) for _ in range(5)]
            wait_for(lambda: len(engine._loop._tasks) == 5 or bool(engine._loop._inbox), "all submitted")
            output: Any = next(t for h, t in engine._tasks.items() if h is handles[2]).compiled.output
            output.push = lambda token: [][0]
        with pytest.raises(mdinfer.RequestFailedError, match="IndexError"):
            handles[2].result(timeout=SOON)
        assert [h.result(timeout=SOON).text for i, h in enumerate(handles) if i != 2] == [expected] * 4
        wait_idle(engine)


def test_a_picture_that_breaks_the_reader_fails_its_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise FaultError("with a secret in its message")

    monkeypatch.setattr("mdinfer.engine.open_picture", failing)
    with pytest.raises(mdinfer.RequestFailedError, match="FaultError") as caught:
        engine.submit(Query(image=PICTURE, question="cat?")).result(timeout=SOON)
    assert "secret" not in str(caught.value)
    wait_idle(engine)


# A fault of the loop


def die(*args: Any) -> Any:
    raise FaultError


def assert_dead(engine: Engine, waiters: list[RequestHandle]) -> None:
    for handle in waiters:
        with pytest.raises(mdinfer.EngineDeadError, match="FaultError"):
            handle.result(timeout=SOON)
    wait_for(lambda: not engine.healthy, "the engine knows that it is dead")
    with pytest.raises(mdinfer.EngineDeadError, match="FaultError"):
        engine.submit(SHORT)
    with pytest.raises(mdinfer.EngineDeadError, match="FaultError"):
        engine.encode_image(PICTURE)
    wait_for(lambda: not engine._tasks, "no request is kept")
    engine.close()


def all_stages(engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> list[RequestHandle]:
    """One request that runs, three that wait, one whose message is not read yet, one whose picture is not."""
    go_on = threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        assert go_on.wait(SOON)
        return open_picture(*args, **options)

    monkeypatch.setattr("mdinfer.engine.open_picture", slow)
    handles = [engine.submit(LONG)]
    assert gate.reached.wait(SOON)
    handles += [engine.submit(SHORT) for _ in range(4)]
    handles.append(engine.submit(Query(image=PICTURE, question="cat?")))
    threading.Timer(0.1, go_on.set).start()
    return handles


@pytest.mark.parametrize("broken", ["plan", "remove", "add"])
def test_a_loop_that_fails_tells_every_waiter(engine: Engine, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the scheduler fails, and however often: also while the loop ends its requests."""
    with held(engine) as gate:
        handles = all_stages(engine, gate, monkeypatch)
        monkeypatch.setattr(engine._loop._scheduler, broken, die)
        if broken == "remove":
            handles[0].cancel()
        gate.opened.set()
        if broken == "remove":
            assert_cancelled(handles.pop(0))
        assert_dead(engine, handles)


def test_pictures_that_wait_are_not_read_when_the_loop_has_failed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, those who wait for them hear of it at once."""
    begun, go_on = list[object](), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        begun.append(args)
        assert go_on.wait(SOON)
        return open_picture(*args, **options)

    monkeypatch.setattr("mdinfer.engine.open_picture", slow)
    handles = [engine.submit(Query(image=PICTURE, question="cat?")) for _ in range(6)]
    wait_for(lambda: len(begun) == 1, "the only thread reads")
    monkeypatch.setattr(engine._loop._scheduler, "plan", die)
    handles.append(engine.submit(SHORT))
    wait_for(lambda: not engine.healthy, "the loop has failed")
    go_on.set()
    assert_dead(engine, handles)
    assert len(begun) == 1


def test_a_scheduler_that_fails_halfway_tells_every_waiter(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault between taking a sequence out of the queue and running it leaves a sequence that is in neither."""
    with held(engine) as gate:
        handles = all_stages(engine, gate, monkeypatch)
        pages = engine._loop._scheduler.pages
        waiting = engine._loop._scheduler.waiting

        def halfway(count: int, **_: Any) -> Any:
            if len(waiting):
                waiting.pop()
            raise FaultError

        monkeypatch.setattr(pages, "take", halfway)
        handles[0].cancel()
        gate.opened.set()
        assert_cancelled(handles.pop(0))
        assert_dead(engine, handles)


def test_a_picture_being_encoded_when_the_loop_fails_does_not_hang(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is in one batch with the one that breaks the loop."""
    found: list[BaseException | None] = []

    def encode() -> None:
        try:
            engine.encode_image(PICTURE)
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=encode, daemon=True)
    with held(engine) as gate:
        engine.submit(LONG)
        assert gate.reached.wait(SOON)
        monkeypatch.setattr(engine._loop._scheduler, "add", die)
        engine.submit(SHORT)
        thread.start()
        wait_for(lambda: len(engine._loop._inbox) == len(engine._loop._encodes) == 1, "both messages sent")
    thread.join(SOON)
    assert not thread.is_alive()
    assert found[0] is None or isinstance(found[0], mdinfer.MdinferError)


def test_a_loop_that_is_interrupted_tells_every_waiter(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every exception is an Exception."""

    def interrupted(plan: StepPlan) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._loop._runner, "launch", interrupted)
    for handle in [engine.submit(SHORT), engine.submit(SHORT)]:
        with pytest.raises(mdinfer.EngineDeadError, match="KeyboardInterrupt"):
            handle.result(timeout=SOON)
    wait_for(lambda: not engine.healthy, "the engine knows that it is dead")


# Closing


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("mdinfer")}


def test_closing_ends_the_threads() -> None:
    before = engine_threads()
    engine = load_engine("tiny-a", image_threads=3)
    engine.generate([Query(image=PICTURE, question="cat?", max_tokens=1)] * 3)
    assert len(engine_threads() - before) >= 2
    engine.close()
    assert engine_threads() <= before
    assert not engine.healthy
    engine.close()
    with engine:  # a third time
        pass


def test_everything_after_closing_is_refused() -> None:
    engine = load_engine("tiny-a")
    assert engine.healthy
    image = engine.encode_image(PICTURE)
    engine.close()
    calls: list[Callable[[], object]] = [
        lambda: engine.query(None, "cat?"),
        lambda: engine.caption(image),
        lambda: engine.detect(PICTURE, "cat"),
        lambda: engine.point(PICTURE, "cat"),
        lambda: engine.chat([{"role": "user", "content": "x"}]),
        lambda: engine.generate([SHORT]),
        lambda: list(engine.stream(SHORT)),
        lambda: engine.encode_image(PICTURE),
        lambda: engine.submit(SHORT),
        lambda: asyncio.run(engine.aquery(None, "cat?")),
        lambda: asyncio.run(engine.aencode_image(PICTURE)),
    ]
    for call in calls:
        with pytest.raises(mdinfer.EngineDeadError, match="the engine is closed"):
            call()


def test_closing_ends_unfinished_requests(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(engine) as gate:
        handles = all_stages(engine, gate, monkeypatch)
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_for(lambda: not engine.healthy, "closing has begun")
    for handle in handles:
        with pytest.raises(mdinfer.EngineDeadError, match="closed"):
            handle.result(timeout=SOON)
    closing.join(SOON)
    assert not closing.is_alive()
    assert not engine._tasks


@pytest.mark.parametrize("request_", [SHORT, Query(image=PICTURE, question="cat?")], ids=["text", "image"])
def test_a_request_that_meets_a_closing_engine(
    engine: Engine, request_: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed between the first look and the hand-over: the call or its handle says so, in the library's words."""

    def closing(request: Any, context: Any) -> Any:
        engine.close()
        return compile_request(request, context)

    monkeypatch.setattr("mdinfer.engine.compile_request", closing)
    with pytest.raises(mdinfer.EngineDeadError):
        engine.submit(request_).result(timeout=SOON)
    assert not engine._tasks


def test_from_many_threads_while_it_closes() -> None:
    """Every call ends, with a result or in the library's words."""
    engine, wrong, ended = load_engine("tiny-a"), list[str](), list[int]()

    def work() -> None:
        for _ in range(200):
            try:
                engine.submit(Query(image=PICTURE, question="cat?", max_tokens=1)).result(timeout=SOON)
            except mdinfer.EngineDeadError:
                break
            except Exception as error:
                wrong.append(repr(error))
                break
        ended.append(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    engine.close()
    for thread in threads:
        thread.join(SOON)
    assert (wrong, len(ended)) == ([], 8)
