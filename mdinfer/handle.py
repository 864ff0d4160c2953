"""A submitted request seen from outside: its events, its result, its end, from threads and coroutines alike."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mdinfer.errors import MdinferError
from mdinfer.result import Event, Result


class RequestHandle:
    """Returned by `Engine.submit`.

    Iterate it (`for` or `async for`) for events; each iteration sees all events from the first. The iteration, and
    `result`, raise the MdinferError that ended a request which did not finish.
    """

    def __init__(self, cancel: Callable[[RequestHandle], None], forget: Callable[[RequestHandle], None]) -> None:
        self.request_id = uuid.uuid4().hex
        self._cancel, self._forget = cancel, forget
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._events: list[Event] = []
        self._error: MdinferError | None = None
        self._result: Result | None = None
        self._wakers: dict[int, _Waker] = {}
        self._waker_ids = itertools.count()

    @property
    def done(self) -> bool:
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Stop the work; whoever waits gets RequestCancelledError. Does nothing to a finished request."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. Raises TimeoutError after `timeout` seconds; the request goes on."""
        if timeout is not None and timeout >= threading.TIMEOUT_MAX:
            timeout = None
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no result within {timeout} s")
        return self._outcome()

    async def aresult(self) -> Result:
        """As `result`; a wait that is given up (cancelled, or its coroutine dropped) cancels the request."""
        with self._waker(end_only=True) as wake:
            try:
                while not self.done:
                    await wake.wait()
            except (asyncio.CancelledError, GeneratorExit):
                self.cancel()
                raise
        return self._outcome()

    def __iter__(self) -> Iterator[Event]:
        for i in itertools.count():
            with self._changed:
                while len(self._events) <= i and not self.done:
                    self._changed.wait()
                event = self._events[i] if len(self._events) > i else None
            if event is None:
                self._outcome()
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        with self._waker(end_only=False) as wake:
            for i in itertools.count():
                while len(self._events) <= i and not self.done:
                    wake.clear()
                    if len(self._events) <= i and not self.done:
                        await wake.wait()
                if len(self._events) <= i:
                    self._outcome()
                    return
                yield self._events[i]

    @contextmanager
    def _waker(self, *, end_only: bool) -> Iterator[asyncio.Event]:
        """An event of this coroutine's loop that is set whenever there is news, or only at the end."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        key = next(self._waker_ids)
        with self._changed:
            self._wakers[key] = _Waker(lambda: loop.call_soon_threadsafe(event.set), end_only)
        try:
            yield event
        finally:
            with self._changed:
                del self._wakers[key]

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error.with_traceback(None)  # the same error may be raised many times: it must not grow
        assert self._result is not None
        return self._result

    def _push(self, event: Event) -> None:
        """From the engine: one more event; the last one carries the result."""
        with self._changed:
            if self.done:
                return
            self._events.append(event)
            self._result = event.result
            self._notify()
        if event.result is not None:
            self._end()

    def _fail(self, error: MdinferError) -> None:
        """From the engine: the request ends without a result."""
        with self._changed:
            if self.done:
                return
            self._error = error
            self._notify()
        self._end()

    def _end(self) -> None:
        """Let go of the engine: a handle that is kept must not keep a model in memory."""
        forget, self._forget, self._cancel = self._forget, _nothing, _nothing
        self._ended.set()
        forget(self)

    def _notify(self) -> None:
        self._changed.notify_all()
        for waker in self._wakers.values():
            if self.done or not waker.end_only:
                try:
                    waker.wake()
                except RuntimeError:  # that event loop is closed: nobody waits there any more
                    continue


class _Waker(NamedTuple):
    wake: Callable[[], object]
    end_only: bool


def _nothing(handle: RequestHandle) -> None:
    """In place of the engine's callbacks once the request has ended."""
