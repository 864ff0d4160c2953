"""What one HTTP request has at work at the engine: submitted together, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mdinfer.errors import DeadlineError, RequestCancelledError
from mdinfer.result import Result
from mdinfer.server.errors import ApiError, ClientGone, api_error, timed_out
from mdinfer.server.protocols import Handle


class Work:
    """Handles of one exchange. `cause` is why they were cancelled before their end, if they were.

    limit is the seconds that the server gives a request, to tell of.
    """

    def __init__(self, handles: Sequence[Handle], limit: float | None) -> None:
        self.handles, self.limit = handles, limit
        self.cause: ApiError | ClientGone | None = None

    def cancel(self, cause: ApiError | ClientGone | None = None) -> None:
        self.cause = self.cause or cause
        for handle in self.handles:
            handle.cancel()

    async def results(self) -> list[Result]:
        return list(await asyncio.gather(*(handle.aresult() for handle in self.handles)))

    def failure(self, error: BaseException) -> ApiError | ClientGone:
        """What the client shall hear of an exception that a handle raised."""
        if isinstance(error, RequestCancelledError) and self.cause is not None:
            return self.cause
        if isinstance(error, DeadlineError):
            return timed_out(self.limit)
        return error if isinstance(error, ClientGone) else api_error(error)
