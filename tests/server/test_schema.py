"""Every request that must be refused, with the field its error names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.fake_engine import FakeEngine
from tests.server.live_server import MODEL, Live, error_of

UNSUPPORTED: list[tuple[str, Any]] = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("frequency_penalty", 0.5),
    ("presence_penalty", -1),
    ("presence_penalty", False),
    ("logit_bias", {"5": 1}),
    ("audio", {"voice": "alloy"}),
    ("modalities", ["text", "audio"]),
    ("chat_template", "{{ x }}"),
    ("chat_template_kwargs", {"enable_thinking": False}),
    ("chat_template_kwargs", {}),
]

INVALID: list[tuple[str, Any]] = [
    ("model", None),
    ("model", 3),
    ("messages", None),
    ("messages", {}),
    ("messages", []),
    ("messages", "hello"),
    ("messages.0", ["hello"]),
    ("messages", [{"role": "user", "content": "a"}] * 4097),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": "a"}] * 41}] * 100),
    ("messages", [{}] * 200_000),
    ("max_completion_tokens", 0),
    ("max_completion_tokens", 4097),
    ("max_tokens", -1),
    ("max_tokens", 1 << 70),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", "5"),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", True),
    ("temperature", int("9" * 400)),
    ("temperature", "1"),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", False),
    ("seed", 1.5),
    ("seed", 1 << 63),
    ("seed", "7"),
    ("stop", 5),
    ("stop", ""),
    ("stop", ["a"] * 5),
    ("stop", ["a" * 65]),
    ("stop.0", [1]),
    ("reasoning", "yes"),
    ("reasoning", 1),
    ("reasoning.effort", {"effort": 1}),
    ("reasoning.enabled", {"enabled": "no"}),
    ("reasoning_effort", 1),
    ("stream", "true"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("stream_options", 5),
    ("logprobs", 1),
    ("top_logprobs", 2),
    ("top_logprobs", 21),
    ("n", 0),
    ("n", 9),
    ("n", True),
]


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED, ids=str)
def test_unsupported_parameters(live: Live, fake: FakeEngine, name: str, value: Any) -> None:
    response = live.chat(**{name: value})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]
    assert not fake.requests


@pytest.mark.parametrize(("param", "value"), INVALID, ids=lambda value: str(value)[:60])
def test_invalid_fields(live: Live, fake: FakeEngine, param: str, value: Any) -> None:
    response = live.chat(**{param.partition(".")[0]: value})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not fake.requests


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_missing_fields(live: Live, missing: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    del body[missing]
    response = live.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == missing


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PARTS: list[tuple[str, Any]] = [
    ("messages.0.content", 5),
    ("messages.0.content", {"type": "text", "text": "hi"}),
    ("messages.0.content.0", ["hi"]),
    ("messages.0.content.0.type", [{}]),
    ("messages.0.content.0.type", [{"type": "image", "image": "/etc/passwd"}]),
    ("messages.0.content.0.type", [{"type": "input_audio", "input_audio": {}}]),
    ("messages.0.content.0.text", [{"type": "text"}]),
    ("messages.0.content.0.text", [{"type": "text", "text": 5}]),
    ("messages.0.content.0.image_url", [{"type": "image_url"}]),
    ("messages.0.content.0.image_url", [{"type": "image_url", "image_url": {}}]),
    ("messages.0.content.0.image_url", [{"type": "image_url", "image_url": {"url": 5}}]),
    ("messages.0.content.0.image_url", [{"type": "image_url", "image_url": "/etc/passwd"}]),
    ("messages.0.content.1.image_url", [IMAGE, {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]),
    ("messages.0.content.3.image_url", [IMAGE] * 4),
]


@pytest.mark.parametrize(("param", "content"), PARTS, ids=str)
def test_invalid_content(live: Live, fake: FakeEngine, param: str, content: Any) -> None:
    response = live.chat(messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert not fake.requests


def test_unknown_role_is_the_engines_to_refuse(live: Live) -> None:
    response = live.chat(messages=[{"role": "tool", "content": "hi"}])
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages.0.role"


def test_unknown_model(live: Live) -> None:
    response = live.chat(model="gpt-4o")
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert MODEL in error["message"]
