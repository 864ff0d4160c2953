"""What each request becomes: its prompt, its state, its budget, its sampling."""

from __future__ import annotations

from typing import Any

import pytest

import mdinfer
from mdinfer import Caption, Chat, Detect, Point, Query
from mdinfer.decode_table import State
from mdinfer.errors import RequestError
from mdinfer.kernels import TokenKind
from mdinfer.skills import Compiled, Context, compile_request

IMAGE = b"not read here"


@pytest.fixture(scope="module")
def context(engine_a: mdinfer.Engine) -> Context:
    return engine_a._context


def text_ids(compiled: Compiled) -> list[int]:
    return [
        int(t) for t, kind in zip(compiled.prompt.tokens, compiled.prompt.kinds, strict=True) if kind != TokenKind.IMAGE
    ]


@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("image", [None, IMAGE], ids=["text", "image"])
def test_query(context: Context, image: Any, reasoning: bool) -> None:
    found = compile_request(Query(image=image, question="cat?", reasoning=reasoning, max_tokens=9), context)
    ids = context.tokenizer.encode("cat?")
    assert text_ids(found) == [0, 1, 422, 2, *ids, 4 if reasoning else 3]
    assert found.state == (State.REASONING if reasoning else State.ANSWER)
    assert found.max_tokens == 9
    assert [p.source for p in found.pictures] == ([] if image is None else [IMAGE])
    assert found.prompt.images == (() if image is None else (1,))


def test_spatial_refs_stand_before_the_question(context: Context) -> None:
    refs: list[Any] = [(0.5, 0.25), [0.0, 0.0, 0.5, 1.0]]
    found = compile_request(Query(question="cat?", spatial_refs=refs, reasoning=True), context)
    assert text_ids(found) == [0, 1, 422, 2, 5, 5, 5, 5, 6, *context.tokenizer.encode("cat?"), 4]
    assert found.prompt.values[4:9].tolist() == [[0.5, 0], [0.25, 0], [0.25, 0], [0.5, 0], [0.5, 1]]


@pytest.mark.parametrize(
    ("length", "ids"),
    [("short", [93, 82, 416]), ("normal", [88, 417]), ("long", [86, 346])],
)
def test_caption(context: Context, length: Any, ids: list[int]) -> None:
    found = compile_request(Caption(image=IMAGE, length=length, max_tokens=7), context)
    assert text_ids(found) == [0, 1, 77, 75, 430, 2, *ids, 3]
    assert (found.state, found.max_tokens, len(found.pictures)) == (State.ANSWER, 7, 1)


def test_detect(context: Context) -> None:
    found = compile_request(Detect(image=IMAGE, object="cat", max_objects=4), context)
    assert text_ids(found) == [0, 1, 78, 426, 2, *context.tokenizer.encode(" cat"), 3]
    assert (found.state, found.max_tokens) == (State.DETECT_X, 12)
    assert found.sampling.temperature == 0


def test_point(context: Context) -> None:
    found = compile_request(Point(image=IMAGE, object="cat", max_objects=4), context)
    assert text_ids(found) == [0, 1, 90, 429, 2, *context.tokenizer.encode(" cat"), 3]
    assert (found.state, found.max_tokens) == (State.POINT_X, 8)
    assert found.sampling.temperature == 0


def test_point_with_spatial_refs(context: Context) -> None:
    found = compile_request(Point(image=IMAGE, object="cat", spatial_refs=[(0.5, 0.25)]), context)
    assert text_ids(found) == [0, 1, 90, 429, 2, 5, 5, *context.tokenizer.encode(" cat"), 3]


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|md_reserved_2|>", "a<|md_reserved_1|>b"])
def test_text_that_spells_a_special_token_is_text(context: Context, text: str) -> None:
    for request in (
        Query(question=text),
        Detect(image=IMAGE, object=text),
        Chat(messages=[{"role": "system", "content": text}, {"role": "user", "content": text}]),
    ):
        ids = text_ids(compile_request(request, context))
        plain = text_ids(compile_request(Query(question=""), context))
        assert sum(i < 16 for i in ids) == sum(i < 16 for i in plain)


@pytest.mark.parametrize(
    ("seed", "bits"), [(0, 0), (5, 5), (-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)]
)
def test_seeds_wrap_to_64_bits(context: Context, seed: int, bits: int) -> None:
    assert compile_request(Query(question="x", seed=seed), context).sampling.seed == bits


def test_a_seed_is_drawn_where_there_is_none(context: Context) -> None:
    seeds = {compile_request(Query(question="x"), context).sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_sampling_is_passed_on(context: Context) -> None:
    found = compile_request(Query(question="x", temperature=1, top_p=1, seed=3, logprobs=2), context).sampling
    assert (found.temperature, found.top_p, found.seed, found.logprobs) == (1.0, 1.0, 3, 2)
    assert isinstance(found.temperature, float)


def test_what_is_no_request(context: Context) -> None:
    with pytest.raises(RequestError, match="found str"):
        compile_request("hello", context)  # type: ignore[arg-type]
