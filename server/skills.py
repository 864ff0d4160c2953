"""POST /v1/query, /v1/caption, /v1/detect, /v1/point: Moondream's own endpoints and their stream."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mdinfer.data_url import DataUrl, decode_data_url
from mdinfer.request import Caption, Detect, Point, Query, Request
from mdinfer.result import Event, Result
from mdinfer.server.answers import answer
from mdinfer.server.body import OFF_LOOP_BYTES, read_body
from mdinfer.server.call import call_of
from mdinfer.server.errors import bad_request, json_response
from mdinfer.server.exchange import finished
from mdinfer.server.schema import (
    Body,
    CaptionBody,
    ObjectBody,
    QueryBody,
    SkillSettings,
    log_unknown,
    parse,
)
from mdinfer.server.service import service_of
from mdinfer.server.stream import EventStream

T = TypeVar("T", bound=Body)


async def query(http: HttpRequest) -> Response:
    body, image = await _read(http, QueryBody)
    refs = tuple(tuple(ref) for ref in body.spatial_refs or ())
    request = Query(
        question=body.question,
        image=image,
        reasoning=bool(body.reasoning),
        spatial_refs=refs,
        **_sampling(body.settings),
    )
    return await _respond(http, request, stream=bool(body.stream))


async def caption(http: HttpRequest) -> Response:
    body, image = await _read(http, CaptionBody)
    length = cast(Any, body.length)  # Caption checks it
    request = Caption(image=image, length=length, **_sampling(body.settings))
    return await _respond(http, request, stream=bool(body.stream))


async def detect(http: HttpRequest) -> Response:
    return await _respond(http, await _object_request(http, Detect), stream=False)


async def point(http: HttpRequest) -> Response:
    return await _respond(http, await _object_request(http, Point), stream=False)


async def _object_request(http: HttpRequest, kind: Callable[..., Detect | Point]) -> Detect | Point:
    body, image = await _read(http, ObjectBody)
    options: dict[str, Any] = {}
    if body.spatial_refs and kind is Detect:
        raise bad_request("spatial_refs works with query and point only: leave it out", "spatial_refs")
    if body.spatial_refs:
        options["spatial_refs"] = tuple(tuple(ref) for ref in body.spatial_refs)
    if body.settings is not None and body.settings.max_objects is not None:
        options["max_objects"] = body.settings.max_objects
    return kind(image=image, object=body.object, **options)


async def _read(http: HttpRequest, kind: type[T]) -> tuple[T, Any]:
    """The body, and the bytes of its picture or None."""
    service = service_of(http)
    service.check_room()
    body, url = await read_body(http, service, functools.partial(_understand, kind))
    if url is None:
        return body, None
    if len(url) > OFF_LOOP_BYTES:
        return body, await asyncio.to_thread(decode_data_url, url)
    return body, decode_data_url(url)


def _understand(kind: type[T], fields: dict[str, Any]) -> tuple[T, str | DataUrl | None]:
    url = fields.get("image_url")
    if isinstance(url, DataUrl):
        fields["image_url"] = url.head
    body = parse(kind, fields)
    log_unknown(kind, fields)
    return body, url


def _sampling(settings: SkillSettings | None) -> dict[str, Any]:
    return {} if settings is None else settings.sampling()


async def _respond(http: HttpRequest, request: Request, *, stream: bool) -> Response:
    request_id = call_of(http.scope).request_id
    if stream:
        return EventStream(http, [request], SkillStream(request=request, request_id=request_id))
    [result] = await finished(http, [request])
    return json_response({"request_id": request_id, **answer(request, result)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillStream:
    """Moondream's stream: chunks of text, then one completed event with everything but the text.

    Clients print every `chunk`, so a reasoning trace arrives whole, in the completed event.
    """

    request: Request
    request_id: str

    def opening(self) -> Iterator[object]:
        return iter(())

    def chunks(self, index: int, event: Event) -> Iterator[object]:
        if event.text:
            yield {"chunk": event.text, "completed": False}

    def closing(self, results: Sequence[Result]) -> Iterator[object]:
        fields = answer(self.request, results[0])
        yield {"chunk": "", "completed": True, "request_id": self.request_id, **fields}

    @property
    def end(self) -> bytes:
        return b""
