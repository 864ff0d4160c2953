"""What the server and the command line need of an engine; `mdinfer.Engine` is one, tests bring another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol, TypeAlias

from mdinfer.request import Request
from mdinfer.result import Event, Result


class Handle(Protocol):
    """One request at work. Iterate it once, or wait for its result; both raise what ended the request."""

    @property
    def request_id(self) -> str: ...

    def cancel(self) -> None:
        """End the request within one engine step; nothing happens if it has ended."""

    def result(self, timeout: float | None = None) -> Result: ...

    async def aresult(self) -> Result: ...

    def __iter__(self) -> Iterator[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...


class ServingEngine(Protocol):
    @property
    def model_id(self) -> str: ...

    @property
    def healthy(self) -> bool: ...

    def description(self) -> str: ...

    def warm_up(self) -> None:
        """Pay for one-time set-up before the first request does."""

    def submit(self, request: Request) -> Handle:
        """Raises RequestError, QueueFullError or EngineDeadError; may take time with large images."""

    def close(self) -> None: ...


EngineLoader: TypeAlias = Callable[[], ServingEngine]
