"""The outermost layer of every exchange: its id, its line in the log, its metrics, an answer to unforeseen faults."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdinfer.server.call import Call, begin_call
from mdinfer.server.errors import api_error
from mdinfer.server.failure import ErrorResponse
from mdinfer.server.metrics import ServerMetrics, error_label

logger = logging.getLogger("mdinfer.server.requests")

PROBES = frozenset({"/health", "/ready", "/metrics"})


class RequestLog:
    """Begins the call and sends its id as the `x-request-id` header; logs neither headers nor bodies."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = begin_call(scope)
        status = 0

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", call.request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, labelled)
        except asyncio.CancelledError:  # how some ASGI servers say that the client has left
            call.client_left = True
            raise
        except Exception as error:
            failure = api_error(error)
            if status:  # too late for another answer: closing the connection is the only honest end
                raise
            await ErrorResponse(failure)(scope, receive, labelled)
        finally:
            self.metrics.observe(scope["path"], status, call)
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            if logger.isEnabledFor(level):
                _log(level, scope, status, call)


def _log(level: int, scope: Scope, status: int, call: Call) -> None:
    path = ascii(scope["path"][:200])[1:-1]
    seconds = call.age
    fields: dict[str, Any] = {
        "method": scope["method"][:20],
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
        **_outcome(call),
    }
    logger.log(level, "%s %s %d %.3fs", fields["method"], path, status, seconds, extra={"fields": fields})


def _outcome(call: Call) -> dict[str, Any]:
    if call.client_left:
        return {"error": "client_left"}
    if call.failure is not None:
        return {"error": error_label(call.failure)}
    if not call.results:
        return {}
    first = call.results[0]
    return {
        "prompt_tokens": first.usage.prompt_tokens,
        "completion_tokens": sum(result.usage.completion_tokens for result in call.results),
        "cached_tokens": first.usage.cached_tokens,
        "ttft_seconds": round(first.metrics.ttft_s, 4),
        "finish_reason": first.finish_reason,
    }
