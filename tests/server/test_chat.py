from __future__ import annotations

import pytest

from mdinfer.request import Chat
from mdinfer.result import XY, Grounding
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server

TEXT = "".join(Script().text)


def only_chat(engine: FakeEngine) -> Chat:
    [request] = engine.requests
    assert isinstance(request, Chat)
    return request


def test_response_has_every_field(live: Live) -> None:
    response = live.chat()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body.pop("system_fingerprint").startswith("mdinfer-")
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_a_cut_answer_says_length(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(finish_reason="length")
    assert live.chat().json()["choices"][0]["finish_reason"] == "length"


def test_parameters_reach_the_engine(live: Live, fake: FakeEngine) -> None:
    fields = {"temperature": 0, "top_p": 0.5, "seed": 7, "stop": ["a", "b"], "max_completion_tokens": 9}
    assert live.chat(**fields, max_tokens=5).status_code == 200
    chat = only_chat(fake)
    assert (chat.temperature, chat.top_p, chat.seed, chat.max_tokens) == (0, 0.5, 7, 9)
    assert chat.stop_strings == ("a", "b")
    assert not chat.reasoning
    assert chat.logprobs is None


def test_max_tokens_is_the_older_name(live: Live, fake: FakeEngine) -> None:
    live.chat(max_tokens=5)
    assert only_chat(fake).max_tokens == 5


def test_null_means_default(live: Live, fake: FakeEngine) -> None:
    names = ["temperature", "top_p", "seed", "stop", "max_tokens", "stream", "reasoning", "logprobs", "n", "tools"]
    assert live.chat(**dict.fromkeys(names)).status_code == 200
    assert only_chat(fake) == Chat(messages=[{"role": "user", "content": "What is 2 + 2?"}])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"reasoning": True}, True),
        ({"reasoning": False, "reasoning_effort": "high"}, False),
        ({"reasoning": {"effort": "low"}}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, True),
    ],
)
def test_spellings_of_reasoning(live: Live, fake: FakeEngine, fields: dict[str, object], expected: bool) -> None:
    message = live.chat(**fields).json()["choices"][0]["message"]
    assert only_chat(fake).reasoning is expected
    assert message.get("reasoning") == ("Counting apples." if expected else None)
    assert ("reasoning" in message) is expected


def test_grounding_comes_with_the_trace(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(grounding=[Grounding(0, 8, [XY(0.5, 0.25)])])
    message = live.chat(reasoning=True).json()["choices"][0]["message"]
    record = {"start_idx": 0, "end_idx": 8, "points": [[0.5, 0.25]]}
    assert message["reasoning_details"] == {"grounding": [record]}


def test_reasoning_alias() -> None:
    with live_server(FakeEngine(), reasoning_alias="reasoning_content") as live:
        message = live.chat(reasoning=True).json()["choices"][0]["message"]
        deltas = [chunk["choices"][0]["delta"] for chunk in live.stream(reasoning=True)[:-1]]
    assert message["reasoning_content"] == message["reasoning"] == "Counting apples."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Counting apples."


def test_logprobs(live: Live) -> None:
    logprobs = live.chat(logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert "".join(entry["token"] for entry in logprobs["content"]) == TEXT
    entry = logprobs["content"][3]
    assert entry["bytes"] == list("fö".encode())
    assert [top["bytes"] for top in entry["top_logprobs"]] == [list("fö".encode()), None, list(b"no")]
    assert entry["top_logprobs"][2]["logprob"] == -9999.0


def test_logprobs_without_alternatives(live: Live, fake: FakeEngine) -> None:
    entries = live.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert only_chat(fake).logprobs == 0
    assert all(entry["top_logprobs"] == [] for entry in entries)


def test_choices_take_consecutive_seeds(live: Live, fake: FakeEngine) -> None:
    body = live.chat(n=3, seed=(1 << 63) - 1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [getattr(request, "seed", None) for request in fake.requests] == [(1 << 63) - 1 + i for i in range(3)]
    assert body["usage"]["prompt_tokens"] == 11
    assert body["usage"]["completion_tokens"] == 15
    assert body["usage"]["total_tokens"] == 26


def test_choices_without_a_seed_differ_by_the_engine(live: Live, fake: FakeEngine) -> None:
    live.chat(n=2)
    assert [getattr(request, "seed", 0) for request in fake.requests] == [None, None]


def test_content_parts_pass_unchanged(live: Live, fake: FakeEngine, data_url: str) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": data_url, "detail": "high"}},
        {"type": "image_url", "image_url": data_url},
        {"type": "text", "text": "What are these?"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    assert live.chat(messages=messages).status_code == 200
    assert only_chat(fake).messages == messages


@pytest.mark.parametrize("name", [MODEL, "moondream3-preview"])
def test_model_names_are_echoed(live: Live, name: str) -> None:
    assert live.chat(model=name).json()["model"] == name


def test_ignored_and_unknown_fields(live: Live) -> None:
    fields = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "verbosity": "low",
        "parallel_tool_calls": False,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "modalities": ["text"],
        "logit_bias": {},
        "nobody_knows": [1],
    }
    assert live.chat(**fields).status_code == 200
