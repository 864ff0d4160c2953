from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mdinfer.server.logs import MAX_LINE, JsonFormatter, TextFormatter, bounded
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server, wait_until

KEY = "sk-very-secret"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def formatter(request: pytest.FixtureRequest) -> logging.Formatter:
    made: logging.Formatter = request.param()
    return made


@pytest.fixture
def log(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """All that mdinfer logs, down to debug."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter)
    logger = logging.getLogger("mdinfer")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield text
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def locked() -> Iterator[tuple[FakeEngine, Live]]:
    engine = FakeEngine()
    with live_server(engine, api_keys=(KEY,)) as live:
        yield engine, live


def ask(live: Live, **fields: Any) -> str:
    """A chat's request id."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    request_id: str = live.http.post("/v1/chat/completions", json=body, headers=HEADERS).headers["x-request-id"]
    return request_id


def lines(log: io.StringIO) -> list[str]:
    """Written when the client has its answer already."""
    wait_until(lambda: log.getvalue().endswith("\n"))
    return log.getvalue().splitlines()


def test_one_line_a_request(log: io.StringIO, formatter: logging.Formatter, locked: tuple[FakeEngine, Live]) -> None:
    request_id = ask(locked[1], stream=True)
    [line] = lines(log)
    if isinstance(formatter, TextFormatter):
        assert "POST /v1/chat/completions 200" in line
        assert line.endswith(request_id)
        return
    record = json.loads(line)
    assert record["request_id"] == request_id
    assert (record["level"], record["logger"]) == ("info", "mdinfer.server.requests")
    assert (record["method"], record["path"], record["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (record["prompt_tokens"], record["completion_tokens"], record["finish_reason"]) == (11, 5, "stop")


def test_a_fault_is_told_with_its_request(log: io.StringIO, locked: tuple[FakeEngine, Live]) -> None:
    engine, live = locked
    engine.script = Script(fault=RuntimeError("it broke"))
    request_id = ask(live)
    fault = log.getvalue().partition("it broke")  # logged before the answer, the request's own line after it
    assert fault[1]
    assert "Traceback" in fault[0]
    assert request_id in fault[0] + fault[2].partition("POST")[0]


def test_no_key_and_no_image_is_logged(log: io.StringIO, locked: tuple[FakeEngine, Live], data_url: str) -> None:
    engine, live = locked
    payload = data_url.partition(",")[2]
    image = {"type": "image_url", "image_url": {"url": data_url}}
    for script in (Script(), Script(fault=RuntimeError(data_url + KEY)), Script(refusal=KeyError(data_url))):
        engine.script = script
        ask(live, messages=[{"role": "user", "content": [image]}])
        ask(live, messages=[{"role": "user", "content": [image]}], unknown_field=data_url)
        live.http.post("/v1/query", json={"question": "?", "image_url": data_url}, headers=HEADERS)
    live.http.get(f"/v1/models?api_key={KEY}", headers={"x-moondream-auth": "wrong-secret"})
    text = log.getvalue()
    assert KEY not in text
    assert "wrong-secret" not in text
    assert payload[:40] not in text


def test_made_up_paths_cannot_forge_lines(log: io.StringIO, locked: tuple[FakeEngine, Live]) -> None:
    locked[1].http.get("/%0a%0dforged%1b[31m" + "x" * 5000, headers=HEADERS)
    [line] = lines(log)
    assert "\x1b" not in line
    assert len(line) < 1000


def test_long_lines_are_cut() -> None:
    text = "a word " * 200
    assert bounded(f"short\n{text}").split("\n") == ["short", text[:MAX_LINE] + " ..."]
    assert bounded("see " + "aB3/" * 100) == "see " + "aB3/" * 4 + "..."
