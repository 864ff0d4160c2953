"""What the server asks of an engine beyond what every engine has: deadlines, namespaces, statistics.

An engine without them serves all the same: deadlines are kept here, and its statistics are missing from /metrics.
"""

from __future__ import annotations

import inspect

from mdinfer import errors
from mdinfer.errors import MdinferError, RequestFailedError
from mdinfer.request import Request
from mdinfer.server.protocols import EngineStats, Handle, ServingEngine


class _DeadlineError(MdinferError):
    pass


class _OutOfMemoryError(RequestFailedError):
    pass


DeadlineError: type[MdinferError] = getattr(errors, "DeadlineError", _DeadlineError)
OutOfMemoryError: type[RequestFailedError] = getattr(errors, "OutOfMemoryError", _OutOfMemoryError)


def keeps_deadlines(engine: ServingEngine) -> bool:
    return "timeout" in inspect.signature(engine.submit).parameters


def submit(engine: ServingEngine, request: Request, *, namespace: str, timeout: float | None) -> Handle:
    if keeps_deadlines(engine):
        return engine.submit(request, namespace=namespace, timeout=timeout)
    return engine.submit(request)


def stats(engine: ServingEngine) -> EngineStats | None:
    return engine.stats() if hasattr(engine, "stats") else None
