from __future__ import annotations

from collections.abc import Iterator

import pytest

from mdinfer.errors import (
    DeadlineError,
    EngineDeadError,
    ImageError,
    MdinferError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
    RequestCancelledError,
    RequestError,
    RequestFailedError,
)
from tests.server.fake_engine import FakeEngine, Script, boom
from tests.server.live_server import MODEL, Live, error_of

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}

MALFORMED = {
    "empty": b"",
    "brace": b"{",
    "not an object": b"[]",
    "number": b"5",
    "nan": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "huge float": b'{"temperature": 1e400}',
    "many digits": b'{"seed": ' + b"9" * 10_000 + b"}",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "lone surrogate": b'{"model": "\\ud800"}',
    "bad utf-8": b'{"model": "\xff"}',
    "surrogate in utf-8": b'{"model": "\xed\xa0\x80"}',
    "trailing": b"{} x",
    "single quotes": b"{'model': 1}",
    "utf-16": '{"model": 1}'.encode("utf-16"),
    "nul": b"\0",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json(live: Live, body: bytes) -> None:
    response = live.http.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (RequestError("bad", param="messages.0"), 400, "invalid_request_error", None, "messages.0"),
        (ImageError("bad"), 400, "invalid_request_error", "invalid_image", "image_url"),
        (PromptTooLongError(9, 8), 400, "invalid_request_error", "context_length_exceeded", "messages"),
        (QueueFullError("full"), 429, "rate_limit_error", "queue_full", None),
        (RequestFailedError("oops"), 500, "server_error", None, None),
        (RequestCancelledError("gone"), 503, "server_error", "cancelled", None),
        (EngineDeadError("dead"), 503, "server_error", "engine_dead", None),
        (OutOfMemoryError("no room"), 503, "server_error", "out_of_memory", None),
        (DeadlineError("late"), 504, "server_error", "timeout", None),
        (boom(), 500, "server_error", None, None),
        (boom(RecursionError), 500, "server_error", None, None),
        (boom(MemoryError), 500, "server_error", None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("where", ["refusal", "fault"])
def test_errors_of_the_engine(
    live: Live,
    fake: FakeEngine,
    error: MdinferError,
    status: int,
    kind: str,
    code: str | None,
    param: str | None,
    where: str,
) -> None:
    fake.script = Script(refusal=error) if where == "refusal" else Script(fault=error, fault_at=2)
    response = live.chat()
    assert response.status_code == status
    found = error_of(response)
    assert (found["type"], found["code"], found["param"]) == (kind, code, param)
    assert ("retry-after" in response.headers) is (status in (429, 503))
    fake.script = Script()
    assert live.chat().status_code == 200


def test_one_failed_choice_cancels_the_others(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(fault=RequestFailedError("oops"), fault_at=1, pause=0.05)
    assert live.chat(n=3).status_code == 500
    assert not live.service.running


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nope", "/v1/chat/completions/", "/v1/models/", "/v1/models/x"])
def test_not_found(live: Live, path: str) -> None:
    response = live.http.get(path)
    assert response.status_code == 404
    assert error_of(response)["code"] in ("not_found", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", CHAT, "POST"), ("PUT", CHAT, "POST"), ("POST", "/v1/models", "GET")]
)
def test_method_not_allowed(live: Live, method: str, path: str, allowed: str) -> None:
    response = live.http.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"]
    assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_content_type(live: Live, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    response = live.http.post(CHAT, content=b"{}", headers=headers)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
def test_content_encoding(live: Live, encoding: str) -> None:
    response = live.http.post(CHAT, content=b"{}", headers={**JSON, "content-encoding": encoding})
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_encoding"


def test_content_encoding_in_two_headers(live: Live) -> None:
    headers = [*JSON.items(), ("content-encoding", "identity"), ("content-encoding", "gzip")]
    assert live.http.post(CHAT, content=b"{}", headers=headers).status_code == 415


def test_charset_is_accepted(live: Live) -> None:
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hi"}}]}}'.encode()
    headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    assert live.http.post(CHAT, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_while_read(live: Live, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 16)

    response = live.http.post(CHAT, content=chunks() if chunked else b" " * ((1 << 20) + 1), headers=JSON)
    assert response.status_code == 413
    error = error_of(response)
    assert error["code"] == "request_too_large"
    assert "1 MiB" in error["message"]
    assert live.chat().status_code == 200, "the connection goes on"


def test_every_request_has_its_own_id(live: Live) -> None:
    ids = {live.http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
