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


class EngineStats(Protocol):
    """A snapshot of the engine. prefix_queries to generation_tokens are cumulative; the prefix's count tokens."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def pages_total(self) -> int: ...
    @property
    def pages_free(self) -> int: ...
    @property
    def pages_cached(self) -> int:
        """Pages that no request holds, kept for their content."""

    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def images_encoded(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def generation_tokens(self) -> int: ...


class ServingEngine(Protocol):
    @property
    def model_id(self) -> str: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def full(self) -> bool:
        """Whether `submit` would raise QueueFullError now."""

    def description(self) -> str: ...

    def warm_up(self) -> None:
        """Pay for one-time set-up before the first request does."""

    def submit(
        self, request: Request, *, namespace: str = "", priority: int = 0, timeout: float | None = None
    ) -> Handle:
        """Raises RequestError, QueueFullError or EngineDeadError; may take time with large images.

        Requests share cached prompts within a namespace only. A request that takes longer than `timeout` seconds
        ends with DeadlineError.
        """

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


EngineLoader: TypeAlias = Callable[[], ServingEngine]
