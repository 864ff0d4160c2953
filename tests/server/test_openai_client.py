"""The OpenAI page's examples through the official client, over a fake engine and over a real one."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import openai
import pytest
from PIL import Image

from mdinfer.engine import Engine
from mdinfer.errors import ImageError, MdinferError, OutOfMemoryError, QueueFullError, RequestFailedError
from mdinfer.request import Chat, Query
from mdinfer.server.protocols import ServingEngine
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import GOLDEN, MODEL, Live, live_server

KEY = "sk-test"
LIMITS: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
RETRIES = [
    (QueueFullError("full"), 429, 3),
    (OutOfMemoryError("no room"), 503, 3),
    (RequestFailedError("oops"), 500, 3),
    (ImageError("bad"), 400, 1),
]
QUESTION: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]
ONLY_REAL = pytest.mark.parametrize("engine", ["tiny-a"], indirect=True)  # a fake has no context and reads no pictures


def real_engine(**options: Any) -> ServingEngine:
    checkpoint = GOLDEN / "checkpoints" / "tiny-a"
    engine = Engine.load(checkpoint, device="cpu", dtype="float32", kv_memory="64MiB", progress=False, **options)
    return cast(ServingEngine, engine)


@pytest.fixture(scope="module", params=["fake", "tiny-a"])
def engine(request: pytest.FixtureRequest) -> Iterator[ServingEngine]:
    engine = FakeEngine() if request.param == "fake" else real_engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def served(engine: ServingEngine) -> Iterator[Live]:
    with live_server(engine, api_keys=(KEY,)) as live:
        yield live


@pytest.fixture(scope="module")
def client(served: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{served.url}/v1", max_retries=0) as client:
        yield client


def expected(engine: ServingEngine, messages: list[Any], **options: Any) -> str:
    """What the engine itself says."""
    return engine.submit(Chat(messages=messages, **LIMITS, **options)).result().text


def create(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **{**LIMITS, **options})


def picture_message(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in this image?"}]}]


def test_setup(client: openai.OpenAI, engine: ServingEngine) -> None:
    response = create(client, QUESTION)
    assert response.choices[0].message.content == expected(engine, QUESTION)
    assert response.choices[0].finish_reason in ("stop", "length")
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    assert response._request_id.startswith("req_")


@pytest.mark.parametrize("images", [1, 2])
def test_image_input(client: openai.OpenAI, engine: ServingEngine, data_url: str, images: int) -> None:
    messages = picture_message(*[data_url] * images)
    response = create(client, messages)
    assert response.choices[0].message.content == expected(engine, messages)
    assert response.usage.prompt_tokens_details.image_tokens > 0


def test_remote_urls_are_rejected(client: openai.OpenAI, data_url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, picture_message(data_url, "https://example.com/cat.png"))
    assert caught.value.param == "messages.0.content.1.image_url"


def test_multi_turn_conversations(client: openai.OpenAI, engine: ServingEngine) -> None:
    messages = [
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Nice to meet you, Alice!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert create(client, messages).choices[0].message.content == expected(engine, messages)


def test_streaming(client: openai.OpenAI, engine: ServingEngine) -> None:
    chunks = list(create(client, QUESTION, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == expected(engine, QUESTION)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_in_a_stream(client: openai.OpenAI) -> None:
    whole = create(client, QUESTION).usage
    *chunks, last = create(client, QUESTION, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens == whole.total_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_helper(client: openai.OpenAI, engine: ServingEngine) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, logprobs=True, **LIMITS) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == expected(engine, QUESTION)
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_reasoning(client: openai.OpenAI, engine: ServingEngine) -> None:
    message = create(client, QUESTION, extra_body={"reasoning": True}).choices[0].message
    result = engine.submit(Chat(messages=QUESTION, reasoning=True, **LIMITS)).result()
    assert (message.content, message.reasoning) == (result.text, result.reasoning)
    deltas = [chunk.choices[0].delta for chunk in create(client, QUESTION, stream=True, extra_body={"reasoning": True})]
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == result.reasoning
    assert "".join(delta.content or "" for delta in deltas) == result.text


def test_logprobs_and_choices(client: openai.OpenAI, engine: ServingEngine) -> None:
    response = create(client, QUESTION, n=2, seed=5, logprobs=True, top_logprobs=2)
    text = expected(engine, QUESTION)
    for choice in response.choices:
        assert choice.message.content == text
        assert bytes(b for token in choice.logprobs.content for b in token.bytes).decode(errors="replace") == text
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_models(client: openai.OpenAI) -> None:
    models = [model.id for model in client.models.list()]
    assert MODEL in models
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_errors_have_the_clients_types(served: Live, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        create(client, QUESTION, temperature=3)
    with (
        openai.OpenAI(api_key="wrong", base_url=f"{served.url}/v1") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


@pytest.mark.parametrize(("refusal", "status", "attempts"), RETRIES)
def test_retries(data_url: str, refusal: MdinferError, status: int, attempts: int) -> None:
    """What is worth another attempt gets one from the client, twice by default; what is not is tried once."""
    with live_server(FakeEngine(Script(refusal=refusal))) as live:
        client = openai.OpenAI(api_key="none", base_url=f"{live.url}/v1")
        with client, pytest.raises(openai.APIStatusError) as caught:
            create(client, QUESTION)
        assert caught.value.status_code == status
        label = f'mdinfer_http_requests_total{{route="/v1/chat/completions",status="{status}"}} {attempts}.0'
        assert label in live.http.get("/metrics").text


def test_async_client(served: Live, engine: ServingEngine) -> None:
    async def ask() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{served.url}/v1") as client:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **LIMITS)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            calls = [client.chat.completions.create(model=MODEL, messages=QUESTION, **LIMITS) for _ in range(6)]
            return streamed, [response.choices[0].message.content for response in await asyncio.gather(*calls)]

    text = expected(engine, QUESTION)
    assert asyncio.run(ask()) == (text, [text] * 6)


@ONLY_REAL
def test_prompt_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, [{"role": "user", "content": "x " * 50_000}])
    assert caught.value.code == "context_length_exceeded"


@ONLY_REAL
def test_a_bad_picture_fails_alone(client: openai.OpenAI, engine: ServingEngine) -> None:
    good: list[Any] = []
    thread = threading.Thread(target=lambda: good.append(create(client, QUESTION)))
    thread.start()
    for url in ("data:image/png;base64,AAAA", "data:image/svg+xml;base64,PHN2Zy8+"):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                create(client, picture_message(url), stream=stream)
            assert caught.value.param == "messages.0.content.0.image_url"
    thread.join()
    assert good[0].choices[0].message.content == expected(engine, QUESTION)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_from_files(client: openai.OpenAI, engine: ServingEngine, suffix: str) -> None:
    paths: list[Path] = sorted((GOLDEN / "images").glob(f"*.{suffix}"))[:2]
    for path in paths:
        url = f"data:image/{suffix};base64,{base64.b64encode(path.read_bytes()).decode()}"
        assert create(client, picture_message(url)).choices[0].message.content == expected(engine, picture_message(url))


@ONLY_REAL
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_of_a_megabyte(served: Live, client: openai.OpenAI, engine: ServingEngine, format: str) -> None:
    """They reach the engine in pieces: the answer is that to the same file, by each way; a cut one is refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 800, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, quality=95)
    file = stream.getvalue()
    assert len(file) > 400_000
    answer = engine.submit(Query(question="What is it?", image=file, **LIMITS)).result().text
    url = f"data:image/{format.lower()};base64,{base64.b64encode(file).decode()}"
    asked = {"question": "What is it?", "image_url": url, "settings": LIMITS}
    found = served.http.post("/v1/query", json=asked, headers={"authorization": f"Bearer {KEY}"})
    assert found.json()["answer"] == answer
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}], **LIMITS)
    assert chat.choices[0].message.content == answer
    parts[0]["image_url"]["url"] = url[:-300_001]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}], **LIMITS)
    assert refused.value.param == "messages.0.content.0.image_url"


@ONLY_REAL
def test_long_base64_in_a_text_is_text(client: openai.OpenAI) -> None:
    """And counts: as many characters do not fit."""
    text = "What is data:image/png;base64," + "QUJD" * 50_000 + "?"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **LIMITS)
    assert refused.value.code == "context_length_exceeded"
