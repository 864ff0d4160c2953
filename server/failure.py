"""Failures on the wire, and in the call they ended."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mdinfer.server.call import call_of
from mdinfer.server.errors import ApiError, ClientGone, api_error


class ErrorResponse(Response):
    """Tells the client of an error, and its call."""

    media_type = "application/json"

    def __init__(self, error: ApiError) -> None:
        super().__init__(msgspec.json.encode(error.body()), error.status, error.headers)
        self.error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).failure = self.error
        await super().__call__(scope, receive, send)


async def handle_error(http: Request, error: Exception) -> Response:
    """Starlette's exception handler for all that is raised on purpose."""
    if isinstance(error, ClientGone):
        call_of(http.scope).client_left = True
        return Response(status_code=499)
    return ErrorResponse(api_error(error))
