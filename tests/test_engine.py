"""The engine's public calls: every skill, streams, coroutines, seeds, limits, many threads at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mdinfer
from mdinfer import Caption, Chat, Detect, Engine, Event, Point, Query, Result
from mdinfer.errors import PromptTooLongError
from mdinfer.image import open_picture
from mdinfer.kernels import DecodeTable, Draws, Sampled, sample
from mdinfer.picture_cutter import PictureCutter
from mdinfer.uncut import UNCUT_BYTES, UncutPicture, UncutRoom
from mdinfer.warm_up import warm_up_requests
from tests.golden_data import image_file, load_engine
from tests.waiting import wait_for, wait_idle

PICTURE, OTHER = image_file("images/p_100x80.png"), image_file("images/p_1x1.png")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
USER = [{"role": "user", "content": "What is this?"}]


def answer(result: Result) -> tuple[Any, ...]:
    """All that does not depend on the clock, or on what was asked before."""
    return (
        result.text,
        result.reasoning,
        result.grounding,
        result.objects,
        result.points,
        result.token_ids,
        result.reasoning_token_ids,
        result.finish_reason,
        replace(result.usage, cached_tokens=0),
        None if result.logprobs is None else [(entry.token_id, len(entry.top)) for entry in result.logprobs],
    )


@pytest.fixture(scope="module")
def encoded(engine_a: Engine) -> mdinfer.EncodedImage:
    return engine_a.encode_image(PICTURE)


CALLS: list[Any] = [
    pytest.param(
        lambda e, i: e.query(i, "cat?", **GREEDY), Query(image=PICTURE, question="cat?", **GREEDY), id="query"
    ),
    pytest.param(
        lambda e, i: e.query(i, "cat?", reasoning=True, spatial_refs=[(0.5, 0.5)], **GREEDY),
        Query(image=PICTURE, question="cat?", reasoning=True, spatial_refs=[(0.5, 0.5)], **GREEDY),
        id="query_reasoning",
    ),
    pytest.param(
        lambda e, i: e.caption(i, length="short", **GREEDY),
        Caption(image=PICTURE, length="short", **GREEDY),
        id="caption",
    ),
    pytest.param(
        lambda e, i: e.detect(i, "cat", max_objects=2, clip=False),
        Detect(image=PICTURE, object="cat", max_objects=2, clip=False),
        id="detect",
    ),
    pytest.param(
        lambda e, i: e.point(i, "cat", max_objects=2), Point(image=PICTURE, object="cat", max_objects=2), id="point"
    ),
    pytest.param(lambda e, i: e.chat(USER, **GREEDY), Chat(messages=USER, **GREEDY), id="chat"),
]
ASYNC_CALLS: list[Any] = [
    pytest.param(lambda e, i: e.aquery(i, "cat?", **GREEDY), CALLS[0].values[1], id="aquery"),
    pytest.param(lambda e, i: e.acaption(i, length="short", **GREEDY), CALLS[2].values[1], id="acaption"),
    pytest.param(lambda e, i: e.adetect(i, "cat", max_objects=2, clip=False), CALLS[3].values[1], id="adetect"),
    pytest.param(lambda e, i: e.apoint(i, "cat", max_objects=2), CALLS[4].values[1], id="apoint"),
    pytest.param(lambda e, i: e.achat(USER, **GREEDY), CALLS[5].values[1], id="achat"),
]


@pytest.mark.parametrize(("call", "request_"), CALLS)
def test_each_call_is_its_request(engine_a: Engine, call: Callable[..., Result], request_: Any) -> None:
    """And the same from an encoded picture, as one of several, and as a stream."""
    first = answer(engine_a.submit(request_).result(timeout=60))
    assert answer(call(engine_a, PICTURE)) == first
    assert answer(call(engine_a, engine_a.encode_image(PICTURE))) == first
    assert [answer(r) for r in engine_a.generate([request_] * 3)] == [first] * 3
    last = list(engine_a.stream(request_))[-1]
    assert last.result is not None
    assert answer(last.result) == first


@pytest.mark.parametrize(("call", "request_"), ASYNC_CALLS)
def test_each_coroutine_is_its_request(engine_a: Engine, call: Any, request_: Any) -> None:
    async def together() -> list[Result]:
        return list(await asyncio.gather(*(call(engine_a, PICTURE) for _ in range(2))))

    first = answer(engine_a.submit(request_).result(timeout=60))
    assert [answer(r) for r in asyncio.run(together())] == [first] * 2


def test_more_coroutines(engine_a: Engine) -> None:
    request = Query(question="cat?", **GREEDY)

    async def main() -> tuple[list[Result], list[Event], mdinfer.EncodedImage]:
        results = await engine_a.agenerate([request, request])
        events = [event async for event in engine_a.astream(request)]
        return results, events, await engine_a.aencode_image(PICTURE)

    results, events, image = asyncio.run(main())
    expected = answer(engine_a.submit(request).result())
    assert [answer(r) for r in results] == [expected] * 2
    assert events[-1].result is not None
    assert answer(events[-1].result) == expected
    assert image.width == 100


REQUESTS: list[Any] = [call.values[1] for call in CALLS]


@pytest.mark.parametrize("request_", REQUESTS, ids=[str(call.id) for call in CALLS])
def test_a_stream_adds_up_to_the_result(engine_a: Engine, request_: Any) -> None:
    events = list(engine_a.stream(request_))
    last, result = events[-1], events[-1].result
    assert result is not None
    assert (last.finish_reason, last.usage) == (result.finish_reason, result.usage)
    assert all((e.finish_reason, e.usage, e.result) == (None, None, None) for e in events[:-1])
    assert all(e.text or e.reasoning or e.point or e.box for e in events[:-1])
    assert "".join(e.text for e in events) == result.text
    assert "".join(e.reasoning for e in events) == (result.reasoning or "")
    assert [e.box for e in events if e.box] == result.objects
    assert [e.point for e in events if e.point] == result.points


def sources() -> list[Any]:
    with Image.open(PICTURE) as picture:
        rgb = picture.convert("RGB")
    data = Path(PICTURE).read_bytes()
    return [PICTURE, Path(PICTURE), data, rgb, np.asarray(rgb)]


def test_every_source_of_a_picture(engine_a: Engine) -> None:
    answers = [answer(engine_a.query(source, "cat?", **GREEDY)) for source in sources()]
    assert answers == answers[:1] * 5


def test_a_data_url_in_a_conversation(engine_a: Engine) -> None:
    url = "data:image/png;base64," + base64.b64encode(Path(PICTURE).read_bytes()).decode()
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "image", "image": PICTURE},
    ]
    answers = [
        answer(engine_a.chat([{"role": "user", "content": [part, {"type": "text", "text": "cat?"}]}], **GREEDY))
        for part in parts
    ]
    assert answers == answers[:1] * 3
    assert answers[0] == answer(engine_a.query(PICTURE, "cat?", **GREEDY))


def test_clipping_is_the_default(engine_a: Engine) -> None:
    """The second golden box of this picture reaches beyond its right side."""
    image = engine_a.encode_image(image_file("images/p_640x480.png"))
    raw, cut = engine_a.detect(image, "cat", clip=False).objects, engine_a.detect(image, "cat").objects
    assert max(box.x_max for box in raw) > 1
    assert cut == [mdinfer.Box(*(min(1.0, max(0.0, side)) for side in box)) for box in raw]


def test_max_objects_ends_a_list(engine_a: Engine, encoded: mdinfer.EncodedImage) -> None:
    image = engine_a.encode_image(image_file("images/p_640x480.png"))
    found = engine_a.detect(image, "cat", max_objects=1)
    assert (len(found.objects), found.finish_reason) == (1, "length")
    assert engine_a.detect(image, "cat").finish_reason == "stop"


# Limits


def test_max_tokens_counts_the_trace_and_the_answer_but_not_what_closes_them(engine_a: Engine) -> None:
    """A golden trace of 2 tokens and its answer of 7, by budget."""
    for budget in range(1, 12):
        result = engine_a.query(None, "Count the red circles", reasoning=True, temperature=0, max_tokens=budget)
        counts = (len(result.reasoning_token_ids), len(result.token_ids))
        assert counts == (min(budget, 2), max(0, min(budget, 9) - 2))
        assert result.finish_reason == ("stop" if budget > 9 else "length")
        assert result.usage.completion_tokens == sum(counts)
        assert result.usage.reasoning_tokens == counts[0]


def test_the_context_ends_an_answer() -> None:
    with load_engine("tiny-a", max_context=20) as engine:
        prompt = engine.query(None, "What is this?", temperature=0, max_tokens=1).usage.prompt_tokens
        result = engine.query(None, "What is this?", temperature=0, max_tokens=500)
        assert (result.finish_reason, result.usage.total_tokens) == ("length", 20)
        assert len(result.token_ids) == 20 - prompt
        with pytest.raises(mdinfer.PromptTooLongError, match="context holds 20") as caught:
            engine.query(None, "What is this? " * 10)
        assert (caught.value.limit, caught.value.tokens > 20, isinstance(caught.value, mdinfer.RequestError)) == (
            20,
            True,
            True,
        )
        with pytest.raises(mdinfer.PromptTooLongError):
            engine.caption(PICTURE)
        exact = next(n for n in range(1, 60) if len(engine._context.tokenizer.encode("a" * n)) == 14)
        assert len(engine.query(None, "a" * exact, **GREEDY).token_ids) == 1  # 19 of 20: room for one
        with pytest.raises(mdinfer.PromptTooLongError):
            engine.query(None, "a" * exact + "!", **GREEDY)
        wait_idle(engine)


def test_memory_for_one_page_is_a_small_context() -> None:
    with load_engine("tiny-a", kv_memory=131_072, max_batch_size=3) as engine:
        assert engine.max_context == 32
        results = engine.generate([Query(question="the", temperature=0, max_tokens=100)] * 3)
        assert [r.usage.total_tokens for r in results] == [32] * 3
        wait_idle(engine)


# Sampling


def test_greedy_is_the_same_whatever_the_seed(engine_a: Engine) -> None:
    found = {engine_a.query(None, "cat?", seed=seed, **GREEDY).text for seed in (None, 1, 2)}
    assert len(found) == 1


def test_warm_answers_differ_by_seed_and_a_seed_repeats_its_own(engine_a: Engine) -> None:
    def ask(seed: int | None) -> tuple[int, ...]:
        return tuple(engine_a.query(None, "cat?", temperature=1.5, top_p=1, seed=seed, max_tokens=12).token_ids)

    by_seed = {seed: ask(seed) for seed in (0, 1, -1, 2**64 - 2, 7)}
    assert len(set(by_seed.values())) == 5
    assert all(ask(seed) == tokens for seed, tokens in by_seed.items())
    assert len({ask(None) for _ in range(5)}) == 5


def test_a_seed_gives_the_same_in_any_batch(engine_a: Engine) -> None:
    """Alone, and among 24 others that are greedy, warm, of other nuclei and lengths."""
    rng = random.Random(3)
    requests = [
        Query(
            question=rng.choice(["cat?", "What is this?", "1 2 3"]),
            temperature=rng.choice([0, 0.5, 1.0, 2.0]),
            top_p=rng.choice([0.1, 0.5, 0.9, 1.0]),
            seed=seed,
            max_tokens=rng.randint(1, 12),
            logprobs=rng.choice([None, 0, 1, 3]),
        )
        for seed in range(25)
    ]
    alone = [answer(engine_a.submit(request).result()) for request in requests]
    rng.shuffle(order := list(range(25)))
    together = engine_a.generate([requests[i] for i in order])
    assert [answer(r) for r in together] == [alone[i] for i in order]


def test_each_tokens_number_comes_from_its_seed_and_its_place(
    engine_a: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a trace and its answer alike: place 0, 1, 2, ... in the sequence, whatever was sampled there."""
    calls: list[tuple[list[int], list[int]]] = []

    def recording(logits: torch.Tensor, states: torch.Tensor, table: DecodeTable, draws: Draws, *rest: Any) -> Sampled:
        assert draws.seeds is not None and draws.steps is not None and draws.uniform is None
        calls.append((draws.seeds.tolist(), draws.steps.tolist()))
        return sample(logits, states, table, draws, *rest)

    monkeypatch.setattr("mdinfer.runner.sample", recording)
    result = engine_a.query(None, "cat?", reasoning=True, temperature=0.5, seed=2**64 - 3, max_tokens=9)
    assert result.usage.completion_tokens <= 9
    assert calls == [([-3], [place]) for place in range(len(calls))]
    assert len(calls) >= result.usage.completion_tokens


def test_stop_strings_cut_the_answer(engine_a: Engine) -> None:
    full = engine_a.query(None, "What is this?", temperature=0, max_tokens=20).text
    assert len(full) > 6
    stop = full[3:6]
    result = engine_a.query(None, "What is this?", temperature=0, max_tokens=20, stop=[stop, "never there"])
    assert result.text == full[: full.index(stop)]
    assert result.finish_reason == "stop"
    assert len(result.token_ids) < 20
    events = list(engine_a.stream(Query(question="What is this?", temperature=0, max_tokens=20, stop=stop)))
    assert "".join(event.text for event in events) == result.text


def test_logprobs(engine_a: Engine) -> None:
    result = engine_a.query(None, "What is this?", temperature=0, max_tokens=6, logprobs=5)
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    assert b"".join(entry.data for entry in result.logprobs).decode("utf-8", "replace") == result.text
    for entry in result.logprobs:
        values = [top.logprob for top in entry.top]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert entry.top[0].token_id == entry.token_id  # greedy
        assert entry.logprob == values[0] < 0
        assert sum(np.exp(values)) <= 1 + 1e-5
        assert 3 not in [top.token_id for top in entry.top]
    plain = engine_a.query(None, "What is this?", temperature=0, max_tokens=6, logprobs=0)
    assert plain.logprobs is not None
    assert [(e.logprob, e.top) for e in plain.logprobs] == [(e.logprob, []) for e in result.logprobs]
    assert engine_a.query(None, "What is this?", **GREEDY).logprobs is None


def test_the_whole_vocabularys_logprobs_sum_to_one(engine_a: Engine) -> None:
    """20 of a peaked distribution, beside the chosen token's own, drawn warm."""
    result = engine_a.query(None, "What is this?", temperature=1, seed=5, max_tokens=6, logprobs=20)
    assert result.logprobs is not None
    for entry in result.logprobs:
        by_id = {top.token_id: top.logprob for top in entry.top}
        assert by_id.get(entry.token_id, entry.logprob) == pytest.approx(entry.logprob)
        assert entry.logprob <= entry.top[0].logprob


def test_logprobs_in_a_stream(engine_a: Engine) -> None:
    events = list(engine_a.stream(Query(question="cat?", logprobs=2, stop="zzz", **GREEDY)))
    result = events[-1].result
    assert result is not None
    assert [entry for event in events for entry in event.logprobs or []] == result.logprobs


def test_very_cold_requests_do_not_disturb_their_neighbours(engine_a: Engine) -> None:
    """The smallest temperatures a request may have, all in one batch with a greedy one."""
    plain = engine_a.query(None, "cat?", **GREEDY)
    cold = [Query(question="cat?", temperature=t, max_tokens=8) for t in (1e-3, 1e-30, 1e-38, 1e-45, 5e-324)]
    results = engine_a.generate([*cold, Query(question="cat?", **GREEDY)])
    assert [answer(r) for r in results] == [answer(plain)] * 6


# Usage and metrics


def test_usage_and_metrics(engine_a: Engine) -> None:
    result = engine_a.query(PICTURE, "What is this?", temperature=0, max_tokens=5)
    usage, times = result.usage, result.metrics
    assert (usage.prompt_tokens, usage.image_tokens) == (738, 729)
    assert (usage.completion_tokens, usage.reasoning_tokens, usage.total_tokens) == (5, 0, 743)
    assert times.image_s > 0
    assert min(times.queue_s, times.prefill_s, times.decode_s) >= 0
    assert times.ttft_s == pytest.approx(times.image_s + times.queue_s + times.prefill_s)
    assert times.total_s == pytest.approx(times.ttft_s + times.decode_s)
    assert times.total_s < 60


@pytest.mark.parametrize(("prefix_cache", "cached"), [(True, [0, 730, 737, 0]), (False, [0, 0, 0, 0])])
def test_a_known_picture_is_not_computed_again(prefix_cache: bool, cached: list[int]) -> None:
    """All of it is reused, and of a known prompt all but the last position; another picture shares nothing."""
    asked = [(PICTURE, "cat?"), (PICTURE, "What is this?"), (PICTURE, "What is this?"), (OTHER, "What is this?")]
    with load_engine("tiny-a", prefix_cache=prefix_cache) as engine:
        results = [engine.query(image, question, **GREEDY) for image, question in asked]
    assert [result.usage.cached_tokens for result in results] == cached
    assert answer(results[1]) == answer(results[2])


def _all_free(room: UncutRoom) -> bool:
    return room.left == UNCUT_BYTES


def test_pictures_that_the_device_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each other, beside one that is too large and cut before, and encoded: the same answers, no room kept."""
    sources: list[Any] = [PICTURE, OTHER, np.full((300, 900, 3), 7, np.uint8)]
    cut, seen = PictureCutter.cut, list[int]()
    monkeypatch.setattr("mdinfer.uncut.PICTURE_BYTES", 3 * 300 * 900 - 1)

    def cutting(cutter: PictureCutter, picture: UncutPicture, out: torch.Tensor) -> None:
        seen.append(len(out))
        cut(cutter, picture, out)

    monkeypatch.setattr(PictureCutter, "cut", cutting)
    requests = [Query(image=source, question="cat?", **GREEDY) for source in sources]
    found = []
    for where in ("cpu", "device"):
        with load_engine("tiny-a", resize=where) as engine:
            answers = [answer(result) for result in engine.generate(requests)]
            with engine.encode_image(PICTURE) as image:
                found.append((answers, image.width, image.height, image.digest, image.features().clone()))
            if where == "cpu":
                assert engine._uncut is None and not seen
            else:
                room = engine._uncut
                assert room is not None
                wait_for(partial(_all_free, room), "all room is free")
                assert len(seen) == 3
    (*known, expected), (*others, features) = found
    assert known == others and torch.equal(features, expected)


def test_a_known_file_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it comes, and for each user of its own; a path is what it holds now, an array may have been changed."""
    path, other = tmp_path / "a.png", Path(OTHER).read_bytes()
    data = Path(PICTURE).read_bytes()
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    chat = Chat(
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
        **GREEDY,
    )
    decoded = list[object]()

    def counting(source: Any, *args: Any, **options: Any) -> Any:
        decoded.append(source)
        return open_picture(source, *args, **options)

    monkeypatch.setattr("mdinfer.engine.open_picture", counting)
    pixels = np.zeros((8, 8, 3), np.uint8)
    with load_engine("tiny-a") as engine:

        def ask(image: Any, namespace: str = "") -> tuple[Any, ...]:
            request = chat if image is chat else Query(image=image, question="cat?", **GREEDY)
            return answer(engine.submit(request, namespace=namespace).result())

        first = ask(data)
        assert [ask(image) for image in (data, path, str(path), bytearray(data))] == [first] * 4
        assert decoded == [data]
        assert ask(chat) == ask(chat)
        assert len(decoded) == 2
        assert ask(data, "another user") == first
        assert len(decoded) == 3
        path.write_bytes(other)
        assert ask(path) == ask(other) != first
        assert len(decoded) == 4
        black = ask(pixels)
        pixels[:] = 255
        assert ask(pixels) != black
        assert len(decoded) == 6


def test_the_description_is_for_people(engine_a: Engine) -> None:
    lines = engine_a.description().splitlines()
    assert [line.split()[0] for line in lines] == ["model", "device", "memory", "capacity"]
    assert "float32" in lines[1]


# Encoded pictures


def test_an_encoded_picture_serves_many_and_then_no_more(engine_a: Engine) -> None:
    with engine_a.encode_image(PICTURE) as image:
        assert (image.width, image.height, len(image.digest)) == (100, 80, 32)
        with engine_a.encode_image(image) as another:
            assert another.digest == image.digest  # closing this one leaves the first
        first = answer(engine_a.query(image, "cat?", **GREEDY))
        assert first == answer(engine_a.query(PICTURE, "cat?", **GREEDY))
    with pytest.raises(mdinfer.ImageError, match="closed"):
        engine_a.query(image, "cat?")
    image.close()  # twice is fine
    wait_idle(engine_a)


def test_a_closed_picture_in_a_conversation_is_blamed_by_its_place(engine_a: Engine) -> None:
    image = engine_a.encode_image(PICTURE)
    image.close()
    parts = [{"type": "text", "text": "cat?"}, {"type": "image", "image": image}]
    with pytest.raises(mdinfer.ImageError) as caught:
        engine_a.chat([{"role": "user", "content": parts}])
    assert caught.value.param == "messages.0.content.1.image"


def test_a_picture_of_another_model_is_refused(engine_a: Engine, engine_b: Engine) -> None:
    with pytest.raises(mdinfer.ImageError, match="another engine"):
        engine_a.query(engine_b.encode_image(PICTURE), "cat?")


# Faults of the request


@pytest.mark.parametrize(
    "source",
    ["/no/such/picture.png", b"no picture", b"", 5, np.zeros((4, 4)), "data:image/png;base64,AAAA"],
    ids=["path", "bytes", "empty", "int", "array", "url"],
)
def test_a_bad_picture_is_raised_by_the_handle(engine_a: Engine, source: Any) -> None:
    handle = engine_a.submit(Query(image=source, question="cat?"))
    with pytest.raises(mdinfer.ImageError) as caught:
        handle.result(timeout=30)
    assert caught.value.param == "image"
    assert "no/such" not in str(caught.value)
    with pytest.raises(mdinfer.ImageError):
        engine_a.encode_image(source)
    wait_idle(engine_a)


def test_a_bad_picture_in_a_conversation_is_blamed_by_its_place(engine_a: Engine) -> None:
    good = {"type": "image", "image": PICTURE}
    for bad, end in (
        ({"type": "image", "image": b"no"}, "image"),
        ({"type": "image_url", "image_url": "http://x/y.png"}, "image_url"),
    ):
        with pytest.raises(mdinfer.ImageError) as caught:
            engine_a.chat([{"role": "user", "content": [good, bad]}])
        assert caught.value.param == f"messages.0.content.1.{end}"


def test_too_large_a_picture() -> None:
    with load_engine("tiny-a", max_image_pixels=7999) as engine, pytest.raises(mdinfer.ImageError, match="7999"):
        engine.query(PICTURE, "cat?")


def test_an_unknown_argument_comes_with_a_suggestion(engine_a: Engine) -> None:
    with pytest.raises(mdinfer.RequestError, match="did you mean 'temperature'") as caught:
        engine_a.query(None, "cat?", temprature=0)  # type: ignore[call-arg]
    assert caught.value.param == "temprature"
    with pytest.raises(mdinfer.RequestError, match="Caption takes temperature"):
        engine_a.caption(PICTURE, qqq=1)  # type: ignore[call-arg]
    with pytest.raises(mdinfer.RequestError, match="did you mean 'max_tokens'"):
        engine_a.chat(USER, max_token=1)  # type: ignore[call-arg]


def test_an_unknown_option_comes_with_a_suggestion() -> None:
    with pytest.raises(mdinfer.ConfigError, match="did you mean 'max_batch_size'"):
        Engine.load("demo", max_batchsize=4)
    with pytest.raises(mdinfer.ConfigError, match="options are device"):
        Engine.load("demo", qqq=4)


def test_the_first_bad_request_of_several_ends_them_all(engine_a: Engine) -> None:
    good, bad = Query(question="cat?", **GREEDY), Query(image=b"no picture", question="cat?")
    with pytest.raises(mdinfer.ImageError):
        engine_a.generate([good, bad, Query(question="cat?", max_tokens=500)])
    wait_idle(engine_a)


# Many at a time


def test_sixteen_threads(engine_a: Engine, encoded: mdinfer.EncodedImage) -> None:
    requests: list[Any] = [
        Query(question="cat?", **GREEDY),
        Query(image=encoded, question="What is this?", **GREEDY),
        Caption(image=encoded, length="short", **GREEDY),
        Detect(image=encoded, object="cat", max_objects=2),
        Point(image=encoded, object="cat", max_objects=2),
        Chat(messages=USER, temperature=1, seed=4, max_tokens=8),
    ]
    expected = [answer(engine_a.submit(request).result()) for request in requests]

    def work(i: int) -> None:
        for k in range(4):
            at = (i + k) % len(requests)
            assert answer(engine_a.submit(requests[at]).result(timeout=60)) == expected[at]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    wait_idle(engine_a)


def test_more_requests_than_the_queue_takes_are_generated_patiently() -> None:
    with load_engine("tiny-a", max_queue=1, max_batch_size=1) as engine:
        requests = [Query(question="cat?", temperature=0, max_tokens=n) for n in range(1, 12)]
        results = engine.generate(requests, progress=False)
        assert [len(r.token_ids) for r in results] == list(range(1, 12))
        wait_idle(engine)


def test_progress_goes_to_stderr(engine_a: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine_a.generate([Query(question="cat?", temperature=0, max_tokens=1)] * 2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_random_requests_with_random_ends(engine_a: Engine) -> None:
    """Each ends exactly once, by itself or by cancellation, and nothing is left behind."""
    rng, errors, ended = random.Random(11), list[str](), list[str]()

    def work(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(12):
            request = Query(
                question="cat? " * mine.randint(1, 5),
                temperature=mine.choice([0, 1]),
                max_tokens=mine.randint(1, 40),
                stop=mine.choice(["", "e"]) or (),
            )
            handle = engine_a.submit(request)
            fate = mine.random()
            if fate < 0.2:
                handle.cancel()
            elif fate < 0.4:
                next(iter(handle), None)
                handle.cancel()
            try:
                events = list(handle)
                ended.append("done")
                if sum(event.finish_reason is not None for event in events) != 1:
                    errors.append("more than one end")
            except mdinfer.RequestCancelledError:
                ended.append("cancelled")

    threads = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(ended) == 8 * 12
    assert "cancelled" in ended
    wait_idle(engine_a)


def test_the_demo_needs_no_download() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(picture, "PNG")
    with Engine.load("demo", progress=False) as engine:
        assert "tiny" in engine.description()
        assert engine.query(picture.getvalue(), "What is this?", **GREEDY).usage.completion_tokens <= 8
        assert engine.point(picture.getvalue(), "cat", max_objects=1).finish_reason in ("stop", "length")


def test_wait_for_gives_up() -> None:
    with pytest.raises(AssertionError, match="not within"):
        wait_for(lambda: False, "never", seconds=0.01)


def test_warming_up_asks_what_an_engine_can_answer(engine_a: Engine) -> None:
    """Also what it asks on a GPU only, and with a context that has no room for a picture."""
    for request in warm_up_requests(pictures=True):
        engine_a.submit(request).result(timeout=60)
    steps = engine_a.stats().steps
    engine_a.warm_up()
    assert engine_a.stats().steps > steps
    with load_engine("tiny-a", max_context=40) as short:
        for request in warm_up_requests(pictures=True)[2:]:
            with pytest.raises(PromptTooLongError):
                short.submit(request)
        short.warm_up()
