"""Request bodies: bounded while they are read, plain JSON objects once they are decoded."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request

from mdinfer.large_bytes import Bytes
from mdinfer.server.base64_cut import cut
from mdinfer.server.call import call_of
from mdinfer.server.errors import ApiError, ClientGone, bad_request
from mdinfer.server.service import Service

T = TypeVar("T")

OFF_LOOP_BYTES = 1 << 16
MAX_VALUES = 100_000
LEAST_RATE = 16_000  # bytes a second that a body must come with, once its body_timeout has passed
_CHUNK = 1 << 18
_SMALL = 1 << 16  # bytes of a piece
_BYTE = re.compile(r"\(byte (\d+)\)$")


async def read_body(
    http: Request, service: Service, understand: Callable[[dict[str, Any]], T], *, bulk: str | None = None
) -> T:
    """What `understand` makes of the body, a JSON object; for a large one it is called on a thread.

    Raises what that raises, ApiError 400, 408, 413, 415 or 429, or ClientGone. bulk names the field to blame where the
    body holds too many values.
    """
    _check_headers(http)
    with service.arriving.share() as arrived:
        pieces = await _read(http, service, arrived)
        call_of(http.scope).body_bytes = size = sum(map(len, pieces))
        if size <= OFF_LOOP_BYTES:
            return understand(decode_object(b"".join(pieces)))
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()
        return await loop.run_in_executor(service.decoder, context.run, lambda: understand(_decode_large(pieces, bulk)))


def decode_object(data: Bytes, place: Callable[[int], int] = int) -> dict[str, Any]:
    """Strict JSON: no NaN, no infinite number, no lone surrogate, no bottomless nesting.

    place tells where in the body a byte of `data` was.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise bad_request("the body's JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ").partition(" - at ")[0]
        reason = _BYTE.sub(lambda found: f"(byte {place(int(found[1]))})", reason)
        raise bad_request(f"the body is not valid JSON: {reason}") from None
    except ValueError:
        raise bad_request("the body is not valid JSON: a number has too many digits") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def _decode_large(pieces: list[bytes | bytearray], bulk: str | None) -> dict[str, Any]:
    """Decoding holds the interpreter, about a second for a few million values: those are refused before it."""
    rest = cut(pieces)
    if holds_more_values(rest.data, MAX_VALUES):
        raise bad_request(f"the body holds more than {MAX_VALUES} JSON values: send fewer", bulk)
    body: dict[str, Any] = rest.put_back(decode_object(rest.data, rest.place))
    return body


def holds_more_values(data: Bytes, limit: int) -> bool:
    """Whether JSON holds more than `limit` commas and opening brackets outside of its strings.

    Nearly always they can be counted wherever they stand. Piece by piece, or by numpy, so that other threads can run.
    """
    starts = range(0, len(data), _CHUNK)
    if sum(data[start : start + _CHUNK].count(mark) for start in starts for mark in (b",", b"[", b"{")) <= limit:
        return False
    count, within, rest = 0, 0, b""
    for start in starts:
        text = (rest + data[start : start + _CHUNK]).replace(b"\\\\", b"")
        rest = b"\\" if text.endswith(b"\\") else b""  # it escapes the next chunk's first character
        characters = np.frombuffer(text.replace(b'\\"', b""), np.uint8)
        inside = np.cumsum(characters == ord('"'), dtype=np.uint8) + np.uint8(within) & 1
        marks = (characters == ord(",")) | (characters == ord("[")) | (characters == ord("{"))
        count += int(np.count_nonzero(marks & (inside == 0)))
        if count > limit:
            return True
        within = int(inside[-1]) if inside.size else within
    return False


def _check_headers(http: Request) -> None:
    encoding = ", ".join(http.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding {encoding[:40]!r} is not accepted: send the body uncompressed"
        raise ApiError(415, message, code="unsupported_encoding")
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Content-Type is {kind[:80]!r}, it must be application/json"
        raise ApiError(415, message, code="unsupported_media_type")


async def _read(http: Request, service: Service, arrived: Callable[[int], None]) -> list[bytes | bytearray]:
    """As it came, not put together: that takes the event loop's time."""
    settings = service.settings
    limit = settings.max_body_bytes
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    pieces: list[bytes | bytearray] = []
    size = 0
    begin = time.monotonic()
    while True:
        overdue = begin + settings.body_timeout + size / LEAST_RATE - time.monotonic()
        try:
            message = await service.arrival(http.receive(), min(settings.body_timeout, max(overdue, 0)))
        except asyncio.TimeoutError:
            text = f"the body came too slowly: {size} bytes in {time.monotonic() - begin:.0f} s"
            raise ApiError(408, text, code="body_timeout", headers={"connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        _append(pieces, piece)
        size += len(piece)
        arrived(len(piece))
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return pieces


def _append(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Small ones are put together: each takes memory and time of its own, and a body may come in a million."""
    if len(piece) >= _SMALL:
        pieces.append(piece)
    elif pieces and isinstance(last := pieces[-1], bytearray) and len(last) + len(piece) <= _SMALL:
        last += piece
    else:
        pieces.append(bytearray(piece))


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit / (1 << 20):g} MiB: send smaller or fewer images"
    return ApiError(413, message, code="request_too_large")
