"""A submitted request seen from outside: its events, its result, its end, from threads and coroutines alike."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

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
        self._events: list[Event] = []
        self._error: MdinferError | None = None
        self._result: Result | None = None
        self._wakers: dict[int, Callable[[], object]] = {}
        self._waker_ids = itertools.count()

    @property
    def done(self) -> bool:
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Stop the work; whoever waits gets RequestCancelledError. Does nothing to a finished request."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. Raises TimeoutError after `timeout` seconds; the request goes on."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"no result within {timeout} s")
        return self._outcome()

    async def aresult(self) -> Result:
        """As `result`; a cancelled wait cancels the request."""
        async for _ in self:
            pass
        return self._outcome()

    def __iter__(self) -> Iterator[Event]:
        for i in itertools.count():
            with self._changed:
                self._changed.wait_for(lambda i=i: len(self._events) > i or self.done)  # type: ignore[misc]
                event = self._events[i] if len(self._events) > i else None
            if event is None:
                self._outcome()
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, wake = asyncio.get_running_loop(), asyncio.Event()
        key = next(self._waker_ids)
        with self._changed:
            self._wakers[key] = lambda: loop.call_soon_threadsafe(wake.set)
        try:
            for i in itertools.count():
                while len(self._events) <= i and not self.done:
                    wake.clear()
                    if len(self._events) <= i and not self.done:
                        await wake.wait()
                if len(self._events) <= i:
                    self._outcome()
                    return
                yield self._events[i]
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            with self._changed:
                del self._wakers[key]

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _push(self, event: Event) -> None:
        """From the engine: one more event; the last one carries the result."""
        with self._changed:
            self._events.append(event)
            self._result = event.result
            self._notify()
        if self.done:
            self._forget(self)

    def _fail(self, error: MdinferError) -> None:
        """From the engine: the request ends without a result."""
        with self._changed:
            if self.done:
                return
            self._error = error
            self._notify()
        self._forget(self)

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers.values():
            try:
                wake()
            except RuntimeError:  # that event loop is closed: nobody waits there any more
                continue
