"""The outermost layer of every exchange: its id, its line in the log, an answer to unforeseen faults."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdinfer.server.errors import api_error, error_response

logger = logging.getLogger("mdinfer.server.requests")

PROBES = frozenset({"/health", "/ready", "/metrics"})


class RequestLog:
    """Sets `scope["request_id"]` and the `x-request-id` header; logs neither headers nor bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["request_id"] = new_request_id()
        status = 0
        begin = time.perf_counter()

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, labelled)
        except Exception as error:
            failure = api_error(error)
            if status:  # too late for another answer: closing the connection is the only honest end
                raise
            await error_response(failure)(scope, receive, labelled)
        finally:
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            seconds = time.perf_counter() - begin
            path = ascii(scope["path"][:200])[1:-1]
            logger.log(level, "%s %s %d %.3fs %s", scope["method"], path, status, seconds, request_id)


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"
