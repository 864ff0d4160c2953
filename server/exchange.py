"""The life of one HTTP request's work: submit, watch the client and the clock, leave nothing running.

Whatever ends the exchange early (the client leaves, the deadline passes, the server stops) cancels the work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request as HttpRequest

from mdinfer.request import Request
from mdinfer.result import Result
from mdinfer.server.body import OFF_LOOP_BYTES
from mdinfer.server.call import Call, call_of
from mdinfer.server.errors import ClientGone, timed_out
from mdinfer.server.protocols import Handle
from mdinfer.server.service import Service, service_of
from mdinfer.server.work import Work


@contextlib.asynccontextmanager
async def submitted(http: HttpRequest, requests: Sequence[Request]) -> AsyncIterator[Work]:
    """Submit `requests` for the length of the block. Raises as `ServingEngine.submit` does, or ApiError."""
    service, call = service_of(http), call_of(http.scope)
    with service.held.share(call.body_bytes):
        handles = await _submit(service, requests, call)
        work = Work(handles, service.settings.request_timeout)
        service.running.add(work)
        watcher = asyncio.create_task(_watch(http, work))
        try:
            yield work
        finally:
            watcher.cancel()
            service.running.discard(work)
            work.cancel()


async def finished(http: HttpRequest, requests: Sequence[Request]) -> list[Result]:
    """The results of `requests`. Raises ApiError or ClientGone."""
    async with submitted(http, requests) as work:
        try:
            results = await work.results()
        except Exception as error:
            raise work.failure(error) from error
    call_of(http.scope).results = results
    return results


async def _watch(http: HttpRequest, work: Work) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    work.cancel(ClientGone())


async def _submit(service: Service, requests: Sequence[Request], call: Call) -> list[Handle]:
    """All or none of the handles; large images are handed over on a thread."""
    engine = service.engine
    limit = service.settings.request_timeout
    left = None if limit is None else limit - call.age
    if left is not None and left <= 0:
        raise timed_out(limit)
    handles: list[Handle] = []

    def submit() -> list[Handle]:
        try:
            for request in requests:
                handles.append(engine.submit(request, namespace=call.namespace, timeout=left))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    if call.body_bytes <= OFF_LOOP_BYTES:
        return submit()
    task = asyncio.create_task(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_cancel_late)
        raise


def _cancel_late(task: asyncio.Task[list[Handle]]) -> None:
    if not task.cancelled() and task.exception() is None:
        for handle in task.result():
            handle.cancel()
