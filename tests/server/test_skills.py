from __future__ import annotations

from typing import Any

import pytest

from mdinfer.request import Caption, Detect, Point, Query
from mdinfer.result import XY, Box, Grounding
from tests.server.fake_engine import FakeEngine, Script, boom
from tests.server.live_server import Live, error_of, events_of

TEXT = "".join(Script().text)
METRICS = {
    "input_tokens": 11,
    "output_tokens": 5,
    "prefill_time_ms": 20.0,
    "decode_time_ms": 500.0,
    "ttft_ms": 25.0,
}


def post(live: Live, skill: str, **fields: Any) -> dict[str, Any]:
    response = live.http.post(f"/v1/{skill}", json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert body.pop("request_id") == response.headers["x-request-id"]
    return body


def test_query(live: Live, fake: FakeEngine, data_url: str) -> None:
    settings = {"temperature": 0.5, "top_p": 0.3, "max_tokens": 12}
    refs = [[0.5, 0.5], [0.1, 0.1, 0.4, 0.6]]
    body = post(live, "query", image_url=data_url, question="What?", settings=settings, spatial_refs=refs)
    assert body == {"answer": TEXT, "finish_reason": "stop", "metrics": METRICS}
    [request] = fake.requests
    assert isinstance(request, Query)
    assert isinstance(request.image, bytes)
    assert (request.question, request.temperature, request.top_p, request.max_tokens) == ("What?", 0.5, 0.3, 12)
    assert list(request.spatial_refs) == [(0.5, 0.5), (0.1, 0.1, 0.4, 0.6)]


def test_query_without_an_image(live: Live, fake: FakeEngine) -> None:
    post(live, "query", question="What?", variant="x", model="moondream")
    assert fake.requests == [Query(question="What?")]


def test_query_with_reasoning(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(grounding=[Grounding(0, 8, [XY(0.5, 0.25)])])
    body = post(live, "query", question="What?", reasoning=True)
    record = {"start_idx": 0, "end_idx": 8, "points": [[0.5, 0.25]]}
    assert body["reasoning"] == {"text": "Counting apples.", "grounding": [record]}


def test_caption(live: Live, fake: FakeEngine, data_url: str) -> None:
    assert post(live, "caption", image_url=data_url, length="short")["caption"] == TEXT
    [request] = fake.requests
    assert isinstance(request, Caption)
    assert request.length == "short"


def test_detect(live: Live, fake: FakeEngine, data_url: str) -> None:
    fake.script = Script(objects=[Box(0.1, 0.2, 0.3, 0.4)] * 2)
    body = post(live, "detect", image_url=data_url, object="cat", settings={"max_objects": 2})
    assert body["objects"] == [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}] * 2
    [request] = fake.requests
    assert isinstance(request, Detect)
    assert (request.object, request.max_objects) == ("cat", 2)


def test_point(live: Live, fake: FakeEngine, data_url: str) -> None:
    body = post(live, "point", image_url=data_url, object="cat", spatial_refs=[[0.5, 0.25]])
    assert body["points"] == [{"x": 0.5, "y": 0.25}]
    [request] = fake.requests
    assert isinstance(request, Point)
    assert list(request.spatial_refs) == [(0.5, 0.25)]


@pytest.mark.parametrize("skill", ["query", "caption"])
def test_stream(live: Live, data_url: str, skill: str) -> None:
    fields = {"image_url": data_url, "question": "What?", "stream": True, "reasoning": True}
    response = live.http.post(f"/v1/{skill}", json=fields)
    *chunks, last = events_of(response.text)
    assert "".join(chunk["chunk"] for chunk in chunks) == TEXT
    assert all(chunk["completed"] is False for chunk in chunks)
    assert (last["chunk"], last["completed"], last["finish_reason"]) == ("", True, "stop")
    assert last["answer" if skill == "query" else "caption"] == TEXT
    assert (last.get("reasoning") is not None) is (skill == "query")
    assert last["request_id"] == response.headers["x-request-id"]


def test_stream_that_fails(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(fault=boom(), fault_at=2)
    response = live.http.post("/v1/query", json={"question": "What?", "stream": True})
    *chunks, last = events_of(response.text)
    assert set(last) == {"error"}
    assert chunks
    assert not any(chunk["completed"] for chunk in chunks)


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("query", "question", {"question": None}),
    ("query", "question", {"question": 5}),
    ("query", "image_url", {"question": "a", "image_url": "https://a.b/c.png"}),
    ("query", "image_url", {"question": "a", "image_url": "/etc/passwd"}),
    ("query", "image_url", {"question": "a", "image_url": "data:image/png;base64,!!"}),
    ("query", "image_url", {"question": "a", "image_url": {"url": "x"}}),
    ("query", "reasoning", {"question": "a", "reasoning": 1}),
    ("query", "spatial_refs", {"question": "a", "spatial_refs": [[1, 2, 3]]}),
    ("query", "spatial_refs.0.1", {"question": "a", "spatial_refs": [[0.5, True]]}),
    ("query", "settings.temperature", {"question": "a", "settings": {"temperature": 3}}),
    ("query", "settings.max_tokens", {"question": "a", "settings": {"max_tokens": 4097}}),
    ("query", "settings.max_tokens", {"question": "a", "settings": {"max_tokens": "5"}}),
    ("query", "settings.top_p", {"question": "a", "settings": {"top_p": 0}}),
    ("query", "settings.top_p", {"question": "a", "settings": {"top_p": int("9" * 400)}}),
    ("query", "spatial_refs.0.0", {"question": "a", "spatial_refs": [[int("9" * 400), 1]]}),
    ("caption", "image_url", {}),
    ("caption", "length", {"length": "huge", "image_url": "data:;base64,AAAA"}),
    ("detect", "object", {"image_url": "data:;base64,AAAA"}),
    ("detect", "settings.max_objects", {"settings": {"max_objects": 0}}),
    ("detect", "spatial_refs", {"object": "a", "image_url": "data:;base64,AAAA", "spatial_refs": [[0.5, 0.5]]}),
]


@pytest.mark.parametrize(("skill", "param", "fields"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(live: Live, fake: FakeEngine, skill: str, param: str, fields: dict[str, Any]) -> None:
    if "max_objects" in param:
        fields = {"image_url": "data:;base64,AAAA", "object": "a", **fields}
    response = live.http.post(f"/v1/{skill}", json=fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert not fake.requests


@pytest.mark.parametrize("value", [0, 4097])
def test_the_limit_of_tokens_is_the_servers(live: Live, value: int) -> None:
    response = live.http.post("/v1/query", json={"question": "a", "settings": {"max_tokens": value}})
    error = error_of(response)
    assert error["param"] == "settings.max_tokens"
    assert error["message"] == f"settings.max_tokens is {value}, it must be from 1 to 4096"
