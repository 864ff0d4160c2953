"""Every failure a client can see, in OpenAI's envelope: {"error": {"message", "type", "param", "code"}}.

Owns the statuses, codes and headers of failures. Messages hold no traceback, no path and no address: text of
exceptions that were not raised on purpose never leaves the process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mdinfer.errors import (
    DeadlineError,
    EngineDeadError,
    ImageError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
    RequestCancelledError,
    RequestError,
)

logger = logging.getLogger("mdinfer.server")

SERVER_ERROR = "the server failed to process this request; quote the x-request-id header to report it"


class ApiError(Exception):
    """A failure with its HTTP status. `headers` are added to the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


class ClientGone(Exception):  # noqa: N818  # an event, not a fault
    """The client closed the connection; nobody reads what we would answer."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after: int = 1) -> ApiError:
    return ApiError(503, message, kind="server_error", code=code, headers={"retry-after": str(retry_after)})


def too_many(message: str, code: str) -> ApiError:
    return ApiError(429, message, kind="rate_limit_error", code=code, headers={"retry-after": "1"})


def timed_out(seconds: float | None = None) -> ApiError:
    limit = "time limit" if seconds is None else f"limit of {seconds:g} s"
    message = f"the request did not finish within the server's {limit}: ask for fewer tokens"
    return ApiError(504, message, kind="server_error", code="timeout")


def api_error(error: BaseException) -> ApiError:
    """The envelope of any exception; an unexpected one is logged and becomes a bare 500."""
    match error:
        case ApiError():
            return error
        case DeadlineError():
            return timed_out()
        case OutOfMemoryError():
            message = "the engine ran out of memory with this request: send it again, or make it smaller"
            return unavailable(message, "out_of_memory")
        case HTTPException():
            return _http_error(error)
        case PromptTooLongError():
            return bad_request(str(error), error.param or "messages", "context_length_exceeded")
        case ImageError():
            param = "image_url" if error.param == "image" else error.param  # the field's name in every body
            return bad_request(str(error), param, "invalid_image")
        case RequestError():
            return bad_request(str(error), error.param)
        case QueueFullError():
            return too_many("too many requests are waiting: try again in a moment", "queue_full")
        case RequestCancelledError():
            return unavailable("the request was cancelled by the server: send it again", "cancelled")
        case EngineDeadError():
            return unavailable("the engine has stopped: the server must be restarted", "engine_dead", 10)
    logger.error("request failed", exc_info=error)
    return ApiError(500, SERVER_ERROR, kind="server_error")


def _http_error(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        message = "there is no such route: see /v1/chat/completions, /v1/models, /v1/query, /v1/caption"
        return ApiError(404, message, code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another one")
        message = f"this route does not take that method, but {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers=error.headers)
    return ApiError(error.status_code, "the request could not be understood", headers=error.headers)


def json_response(payload: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(payload), status, headers, media_type="application/json")
