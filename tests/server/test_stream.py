from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import pytest

from mdinfer.errors import ImageError, MdinferError, PromptTooLongError, QueueFullError, RequestFailedError
from mdinfer.result import XY, Grounding
from tests.server.fake_engine import FakeEngine, Script, boom
from tests.server.live_server import MODEL, Live, error_of, events_of, live_server, wait_until

TEXT = "".join(Script().text)
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


def deltas(events: list[Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for event in events[:-1] for choice in event["choices"]]


def test_order_and_identity_of_chunks(live: Live) -> None:
    events = live.stream()
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert "".join(delta.get("content", "") for delta in deltas(events)) == TEXT
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["model"] == MODEL
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def test_headers(live: Live) -> None:
    response = live.chat(stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["connection"] == "close"
    assert response.headers["x-request-id"].startswith("req_")


def test_usage_comes_last_and_only_when_asked_for(live: Live) -> None:
    *chunks, usage, done = live.stream(stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 16
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["id"] == chunks[0]["id"]


def test_reasoning_precedes_content(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(grounding=[Grounding(0, 8, [XY(0.5, 0.25)])])
    kinds = [next(iter(delta), "finish") for delta in deltas(live.stream(reasoning=True))]
    assert kinds == ["role", "reasoning", "reasoning", *["content"] * 5, "reasoning_details", "finish"]


def test_logprobs_ride_on_their_content(live: Live) -> None:
    choices = [event["choices"][0] for event in live.stream(logprobs=True, top_logprobs=1)[:-1]]
    for choice in choices:
        if choice["logprobs"] is not None:
            [entry] = choice["logprobs"]["content"]
            assert entry["token"] == choice["delta"]["content"]
    assert sum(choice["logprobs"] is not None for choice in choices) == len(Script().text)


def test_several_choices(live: Live) -> None:
    events = live.stream(n=3, stream_options={"include_usage": True})
    texts, ends = ["", "", ""], [None, None, None]
    for event in events[:-2]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] = choice["finish_reason"]
    assert texts == [TEXT] * 3
    assert ends == ["stop"] * 3
    assert events[-2]["usage"]["completion_tokens"] == 15


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ImageError("bad picture", param="messages.0.content.0.image_url"), 400, "invalid_image"),
        (PromptTooLongError(5000, 4096), 400, "context_length_exceeded"),
        (RequestFailedError("/secret 0xabc"), 500, None),
        (QueueFullError("full"), 429, "queue_full"),
    ],
)
@pytest.mark.parametrize("where", ["refusal", "fault"])
def test_failure_before_the_first_byte_is_a_status(
    live: Live, fake: FakeEngine, error: MdinferError, status: int, code: str | None, where: str
) -> None:
    fake.script = Script(refusal=error) if where == "refusal" else Script(fault=error)
    response = live.chat(stream=True)
    assert response.status_code == status
    assert error_of(response)["code"] == code


@pytest.mark.parametrize("error", [RequestFailedError("/secret 0xabc"), boom(), boom(KeyError)])
def test_failure_after_the_first_byte_is_an_event(live: Live, fake: FakeEngine, error: BaseException) -> None:
    fake.script = Script(fault=error, fault_at=2)
    response = live.chat(stream=True, n=2)
    assert response.status_code == 200
    events = events_of(response.text)
    assert set(events[-1]) == {"error"}
    assert events[-1]["error"]["type"] == "server_error"
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in events
    assert "/secret" not in response.text
    assert "0x" not in response.text
    wait_until(lambda: not live.service.running)
    fake.script = Script()
    assert live.stream()[-1] == "[DONE]"


def test_ping_in_silence(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(text=("a",), pause=0.5)
    text = live.chat(stream=True).text
    assert text.count(": ping\n\n") >= 2
    assert text.startswith("data: {"), "the role comes before the first ping"
    assert deltas(events_of(text))[1] == {"content": "a"}


def test_chunks_are_not_held_back(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(pause=0.15)
    begin = time.monotonic()
    with live.http.stream("POST", "/v1/chat/completions", json=BODY) as response:
        times = [time.monotonic() - begin for line in response.iter_lines() if '"content":"' in line]
    assert times[1] < 0.45
    assert times[-1] > 0.6


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_work(live: Live, fake: FakeEngine, stream: bool) -> None:
    fake.script = Script(pause=30 if not stream else 0.3)
    body = {**BODY, "stream": stream, "n": 2}
    with httpx.Client(base_url=live.url, timeout=0.5) as http:
        if stream:
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body)
    wait_until(lambda: all(handle.cancelled.is_set() for handle in fake.handles), 2)
    assert len(fake.handles) == 2
    wait_until(lambda: not live.service.running, 2)


@pytest.mark.parametrize(("stream", "pause"), [(False, 5.0), (True, 5.0), (True, 0.2)])
def test_deadline(stream: bool, pause: float) -> None:
    engine = FakeEngine(Script(pause=pause, text=["x"] * 20))
    with live_server(engine, request_timeout=0.5) as live:
        response = live.chat(stream=stream)
        if pause > 1:
            assert response.status_code == 504
            assert error_of(response)["code"] == "timeout"
            assert "limit of 0.5 s" in response.text
        else:
            assert events_of(response.text)[-1]["error"]["code"] == "timeout"
        assert engine.handles[0].deadline is not None
        wait_until(lambda: not live.service.running)


def test_the_time_for_the_body_counts() -> None:
    fake = FakeEngine()
    body = json.dumps({"question": "?"}).encode()
    head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with (
        live_server(fake, request_timeout=30) as timed,
        socket.create_connection(("127.0.0.1", timed.port), timeout=5) as wire,
    ):
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
        time.sleep(0.5)
        sent = time.monotonic()
        wire.sendall(body[-1:])
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
    [handle] = fake.handles
    assert handle.deadline is not None
    assert handle.deadline < sent + 29.7
