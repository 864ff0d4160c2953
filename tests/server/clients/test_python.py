"""Python clients besides openai's own; they come with the extra `clients`, and without it these tests are skipped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server

KEY = "sk-python"
TEXT = "".join(Script().text)
TRACE = "".join(Script().reasoning)
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live_server(FakeEngine(), api_keys=(KEY,), reasoning_alias="reasoning_content") as live:
        yield live


def picture_message(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def moondream(served: Live) -> Any:
    package = pytest.importorskip("moondream")
    return package.vl(api_key=KEY, endpoint=f"{served.url}/v1")


def test_moondream(moondream: Any, picture: Path) -> None:
    with Image.open(picture) as image:
        assert moondream.caption(image, length="short", settings={"max_tokens": 9}) == {"caption": TEXT}
        assert "".join(moondream.caption(image, stream=True)["caption"]) == TEXT
        assert moondream.query(image, "What?", spatial_refs=[(0.5, 0.5)]) == {"answer": TEXT}
        assert "".join(moondream.query(image, "What?", stream=True)["answer"]) == TEXT
        thought = moondream.query(image, "What?", reasoning=True)
        assert (thought["answer"], thought["reasoning"]["text"]) == (TEXT, TRACE)
        boxes = moondream.detect(image, "cup", settings={"max_objects": 5})["objects"]
        assert boxes == [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}]
        assert moondream.point(image, "cup") == {"points": [{"x": 0.5, "y": 0.25}]}
        encoded = moondream.encode_image(image)
        assert moondream.query(encoded, "And now?")["answer"] == TEXT
    assert moondream.query(question="What is 2 + 2?")["answer"] == TEXT


def test_moondream_chat(moondream: Any, data_url: str) -> None:
    answer = moondream.chat(picture_message(data_url), settings={"temperature": 0, "max_tokens": 9})
    assert (answer["message"]["content"], answer["finish_reason"]) == (TEXT, "stop")
    assert moondream.chat(QUESTION, reasoning=True)["message"]["reasoning"] == TRACE
    assert "".join(moondream.chat(QUESTION, stream=True)["message"]) == TEXT


def test_litellm(served: Live, data_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks GitHub for prices
    litellm: Any = pytest.importorskip("litellm")
    common = {"model": f"openai/{MODEL}", "api_base": f"{served.url}/v1", "api_key": KEY}

    def complete(messages: list[dict[str, Any]] = QUESTION, **fields: Any) -> Any:
        return litellm.completion(messages=messages, **common, **fields)

    whole = complete(temperature=0)
    assert whole.choices[0].message.content == TEXT
    assert whole.usage.total_tokens == 16
    assert complete(picture_message(data_url)).choices[0].message.content == TEXT
    assert (
        complete(reasoning_effort="low", allowed_openai_params=["reasoning_effort"])
        .choices[0]
        .message.reasoning_content
        == TRACE
    )
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.total_tokens == 16
    asynchronous = asyncio.run(litellm.acompletion(messages=QUESTION, **common))
    assert asynchronous.choices[0].message.content == TEXT
    with pytest.raises(litellm.BadRequestError):
        complete(temperature=3)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**common, "api_key": "wrong"}, messages=QUESTION)


def test_langchain(served: Live, data_url: str) -> None:
    package: Any = pytest.importorskip("langchain_openai")
    chat = package.ChatOpenAI(model=MODEL, base_url=f"{served.url}/v1", api_key=KEY, temperature=0, max_tokens=20)
    answer = chat.invoke("What is 2 + 2?")
    assert answer.content == TEXT
    assert answer.usage_metadata["total_tokens"] == 16
    turns = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello"), ("human", "What is 2 + 2?")]
    assert chat.invoke(turns).content == TEXT
    assert chat.invoke(picture_message(data_url)).content == TEXT
    assert "".join(chunk.content for chunk in chat.stream("What is 2 + 2?", stream_usage=True)) == TEXT
    assert chat.batch(["a", "b", "c"])[2].content == TEXT
    assert asyncio.run(chat.ainvoke("What is 2 + 2?")).content == TEXT
