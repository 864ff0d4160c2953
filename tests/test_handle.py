"""The handle of a request: events and ends, seen from threads and coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from mdinfer import Event, Metrics, RequestCancelledError, RequestFailedError, RequestHandle, Result, Usage

USAGE = Usage(prompt_tokens=1, completion_tokens=2)
RESULT = Result(
    text="ab",
    finish_reason="stop",
    usage=USAGE,
    metrics=Metrics(image_s=0, queue_s=0, vision_s=0, prefill_s=0, ttft_s=0, decode_s=0, total_s=0),
)
EVENTS = [Event(text="a"), Event(text="b"), Event(finish_reason="stop", usage=USAGE, result=RESULT)]


class Calls:
    """A handle, and what it told its engine."""

    def __init__(self) -> None:
        self.cancelled: list[RequestHandle] = []
        self.forgotten: list[RequestHandle] = []
        self.handle = RequestHandle(self.cancelled.append, self.forgotten.append)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def push_all(handle: RequestHandle, pause: float = 0.0) -> None:
    for event in EVENTS:
        time.sleep(pause)
        handle._push(event)


def later(work: Callable[[], object], delay: float = 0.02) -> threading.Thread:
    thread = threading.Timer(delay, work)
    thread.daemon = True
    thread.start()
    return thread


def test_events_then_the_result(calls: Calls) -> None:
    assert not calls.handle.done
    push_all(calls.handle)
    assert calls.handle.done
    assert calls.handle.result() is RESULT
    assert list(calls.handle) == EVENTS
    assert list(calls.handle) == EVENTS  # each iteration starts at the first
    assert calls.forgotten == [calls.handle]
    assert calls.cancelled == []


def test_ids_differ() -> None:
    assert len({Calls().handle.request_id for _ in range(100)}) == 100


def test_waiting_in_threads(calls: Calls) -> None:
    seen: list[list[Event]] = []
    readers = [threading.Thread(target=lambda: seen.append(list(calls.handle))) for _ in range(4)]
    for reader in readers:
        reader.start()
    later(lambda: push_all(calls.handle, 0.005))
    assert calls.handle.result(timeout=10) is RESULT
    for reader in readers:
        reader.join(10)
    assert seen == [EVENTS] * 4


def test_a_timeout_does_not_end_the_request(calls: Calls) -> None:
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        calls.handle.result(timeout=0.01)
    assert not calls.handle.done
    push_all(calls.handle)
    assert calls.handle.result(timeout=0) is RESULT


def test_a_failure_is_raised_to_everyone_after_the_events_before_it(calls: Calls) -> None:
    calls.handle._push(EVENTS[0])
    error = RequestFailedError("no")
    calls.handle._fail(error)
    reading = iter(calls.handle)
    assert next(reading) == EVENTS[0]
    with pytest.raises(RequestFailedError):
        next(reading)
    for _ in range(2):
        with pytest.raises(RequestFailedError):
            calls.handle.result()
    assert calls.forgotten == [calls.handle]


def test_the_first_end_counts(calls: Calls) -> None:
    push_all(calls.handle)
    calls.handle._fail(RequestFailedError("late"))
    assert calls.handle.result() is RESULT
    other = Calls()
    other.handle._fail(RequestFailedError("first"))
    other.handle._fail(RequestCancelledError("second"))
    with pytest.raises(RequestFailedError, match="first"):
        other.handle.result()
    assert other.forgotten == [other.handle]


def test_cancel_asks_the_engine(calls: Calls) -> None:
    calls.handle.cancel()
    assert calls.cancelled == [calls.handle]
    assert not calls.handle.done


def test_coroutines(calls: Calls) -> None:
    async def read() -> list[Event]:
        return [event async for event in calls.handle]

    async def main() -> tuple[list[Event], list[Event], Result]:
        later(lambda: push_all(calls.handle, 0.005))
        first, second, result = await asyncio.gather(read(), read(), calls.handle.aresult())
        return first, second, result

    assert asyncio.run(main()) == (EVENTS, EVENTS, RESULT)
    assert calls.handle._wakers == {}
    assert asyncio.run(calls.handle.aresult()) is RESULT  # and of another event loop, afterwards


def test_a_failure_in_a_coroutine(calls: Calls) -> None:
    later(lambda: calls.handle._fail(RequestFailedError("no")))
    with pytest.raises(RequestFailedError):
        asyncio.run(calls.handle.aresult())


def test_a_cancelled_wait_cancels_the_request(calls: Calls) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(calls.handle.aresult(), 0.02)

    asyncio.run(main())
    assert calls.cancelled == [calls.handle]
    assert calls.handle._wakers == {}


def test_a_dropped_wait_cancels_the_request(calls: Calls) -> None:
    """As that of a coroutine whose event loop ended before it."""

    async def main() -> None:
        waiting = calls.handle.aresult()
        waiting.send(None)
        waiting.close()

    asyncio.run(main())
    assert calls.cancelled == [calls.handle]
    assert calls.handle._wakers == {}


def test_an_event_loop_that_is_gone_is_passed_over(calls: Calls) -> None:
    """A coroutine that was never finished leaves its waker behind: others must still be told."""
    loop = asyncio.new_event_loop()

    async def first() -> Event:
        return await anext(calls.handle.__aiter__())

    task = loop.create_task(first())
    loop.run_until_complete(asyncio.sleep(0))
    assert len(calls.handle._wakers) == 1
    loop.stop()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    push_all(calls.handle)
    assert calls.handle.result(timeout=1) is RESULT
