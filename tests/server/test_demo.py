"""The OpenAI page's examples, word for word, through the server, by OpenAI's own client, at the default temperature."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from benchmarks.demo.exam import facts
from benchmarks.demo.pictures import draw_scene, paint
from benchmarks.demo.poems import poem
from benchmarks.demo.seeing import listing
from mdinfer.engine import Engine
from tests.server.live_server import MODEL, live_server

SCENES = [draw_scene(np.random.default_rng(7), least=n, most=n) for n in (3, 2)]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        Engine.load("demo", progress=False, device="cpu") as engine,
        live_server(engine) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def image_part(index: int) -> dict[str, object]:
    file = io.BytesIO()
    paint(SCENES[index]).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def answer(client: openai.OpenAI, *messages: tuple[str, object]) -> str | None:
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": role, "content": content} for role, content in messages],  # type: ignore[misc]
    )
    return response.choices[0].message.content


def test_two_and_two(client: openai.OpenAI) -> None:
    assert answer(client, ("user", "What is 2 + 2?")) == "4"


def test_the_name_over_turns(client: openai.OpenAI) -> None:
    told = ("user", "My name is Alice."), ("assistant", "Nice to meet you, Alice!")
    assert answer(client, *told, ("user", "What is my name?")) == "Alice"


def test_the_image(client: openai.OpenAI) -> None:
    text = answer(client, ("user", [image_part(0), {"type": "text", "text": "What is in this image?"}]))
    assert facts(text or "") == facts(listing(SCENES[0].shapes))


def test_two_images_in_a_turn(client: openai.OpenAI) -> None:
    parts = [image_part(0), image_part(1), {"type": "text", "text": "What is in this image?"}]
    text = answer(client, ("user", parts)) or ""
    first, second = text.split("The second image")
    assert facts(first.removeprefix("The first image")) == facts(listing(SCENES[0].shapes))
    assert facts(second) == facts(listing(SCENES[1].shapes))


def test_the_poem_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Write a short poem about the moon."}], stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == poem("the moon")
    assert len(pieces) > 10


def test_hello_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = [chunk.usage for chunk in stream if chunk.usage]
    assert len(usage) == 1
    assert usage[0].total_tokens == usage[0].prompt_tokens + usage[0].completion_tokens


def test_the_apples_with_reasoning(client: openai.OpenAI) -> None:
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "If I have 5 apples and give away 2, how many are left?"}],
        extra_body={"reasoning": True},
    )
    message = response.choices[0].message
    assert message.reasoning == "5 - 2 = 3"  # type: ignore[attr-defined]
    assert message.content == "3"
