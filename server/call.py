"""What the layers of one HTTP exchange know of each other: its id, its caller's namespace, how it ended."""

from __future__ import annotations

import contextvars
import time
import uuid
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mdinfer.result import Result
from mdinfer.server.errors import ApiError

_SCOPE_KEY = "mdinfer.call"

request_id_in_log: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


@dataclass(slots=True, kw_only=True)
class Call:
    """namespace isolates the caller's cached prompts. results are set when all of them are there, failure when not."""

    request_id: str
    arrival: float = field(default_factory=time.perf_counter)
    namespace: str = ""
    body_bytes: int = 0
    model: str | None = None
    results: Sequence[Result] = ()
    failure: ApiError | None = None
    client_left: bool = False

    @property
    def age(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.arrival


def begin_call(scope: MutableMapping[str, Any]) -> Call:
    """Make the call of an exchange; what is logged in its course carries its id."""
    call = Call(request_id=new_request_id())
    scope[_SCOPE_KEY] = call
    request_id_in_log.set(call.request_id)
    return call


def call_of(scope: MutableMapping[str, Any]) -> Call:
    call: Call = scope[_SCOPE_KEY]
    return call


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"
