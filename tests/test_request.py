"""Requests are checked when they are made: every bad value is a RequestError that names its field."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mdinfer import Caption, Chat, Detect, Point, Query, RequestError, Sampling

INF, NAN = float("inf"), float("nan")
USER = {"role": "user", "content": "x"}
TEXT_REQUESTS: list[Any] = [
    pytest.param(Query, {"question": "x"}, id="query"),
    pytest.param(Caption, {"image": b"x"}, id="caption"),
    pytest.param(Chat, {"messages": [USER]}, id="chat"),
    pytest.param(Sampling, {}, id="sampling"),
]
NO_NUMBER = [NAN, INF, -INF, True, "1", None, [1], 1j]


def refused(kind: Any, param: str, **values: Any) -> None:
    with pytest.raises(RequestError) as caught:
        kind(**values)
    assert caught.value.param == param
    assert isinstance(caught.value, ValueError)
    length = len(str(caught.value))
    assert length < 1000


@pytest.mark.parametrize(("kind", "base"), TEXT_REQUESTS)
@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("temperature", [-1, -1e-9, 2.0001, 2**31, 2**63, *NO_NUMBER]),
        ("top_p", [0, -0.0, -0.1, 1.0001, 2**31, *NO_NUMBER]),
        ("max_tokens", [0, -1, 2**31, 2**63, 1.0, *NO_NUMBER]),
        ("seed", [2**64, -(2**63) - 1, 1.0, *[v for v in NO_NUMBER if v is not None]]),
        ("logprobs", [-1, 21, 2**63, 1.0, *[v for v in NO_NUMBER if v is not None]]),
        (
            "stop",
            ["", "x" * 65, 5, ["a", ""], ["a", 5], ["a", None], b"ab", ["a"] * 5, [["a"]], {"a": 1}, {"a"}],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_sampling_value(kind: Any, base: dict[str, Any], param: str, values: list[Any]) -> None:
    for value in values:
        refused(kind, param, **base, **{param: value})


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["10^400", "-10^400", "10^5000"])
@pytest.mark.parametrize("param", ["temperature", "top_p", "max_tokens", "seed", "logprobs"])
def test_an_integer_that_no_float_holds_or_that_python_does_not_print(param: str, value: int) -> None:
    refused(Sampling, param, **{param: value})


@pytest.mark.parametrize(("kind", "base"), TEXT_REQUESTS)
@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("temperature", [0, 0.0, -0.0, 1e-300, 0.2, 1, 2, np.float64(0.5)]),
        ("top_p", [1e-9, 0.5, 1, 1.0]),
        ("max_tokens", [1, 768, 1 << 20]),
        ("seed", [None, 0, -(2**63), 2**63, 2**64 - 1]),
        ("logprobs", [None, 0, 20]),
        ("stop", ["x", "x" * 64, (), [], ["a"], ("a", "b", "c", "d"), "\n", "日本"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_good_sampling_value(kind: Any, base: dict[str, Any], param: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(kind(**base, **{param: value}), param) == value


def test_stop_strings() -> None:
    assert Sampling(stop="ab").stop_strings == ("ab",)
    assert Sampling(stop=["a", "b"]).stop_strings == ("a", "b")
    assert Sampling().stop_strings == ()


@pytest.mark.parametrize("value", [None, 5, b"x", ["x"], "\ud800", "a\udfffb"], ids=repr)
def test_text_must_be_a_string_that_utf8_can_hold(value: Any) -> None:
    refused(Query, "question", question=value)
    refused(Detect, "object", image=b"x", object=value)
    refused(Point, "object", image=b"x", object=value)


@pytest.mark.parametrize("value", [0, 1, None, "yes", [], 1.0], ids=repr)
def test_flags_must_be_bools(value: Any) -> None:
    refused(Query, "reasoning", question="x", reasoning=value)
    refused(Chat, "reasoning", messages=[USER], reasoning=value)
    refused(Detect, "clip", image=b"x", object="x", clip=value)


@pytest.mark.parametrize("kind", [Detect, Point])
@pytest.mark.parametrize("value", [0, -1, 1025, 2**63, 1.0, True, "5", None, NAN], ids=repr)
def test_max_objects(kind: Any, value: Any) -> None:
    refused(kind, "max_objects", image=b"x", object="x", max_objects=value)


def test_skills_that_need_an_image() -> None:
    refused(Caption, "image", image=None)
    refused(Detect, "image", image=None, object="x")
    refused(Point, "image", image=None, object="x")
    assert Query(question="x").image is None


@pytest.mark.parametrize("value", ["Short", "", None, 3, [], "x" * 30], ids=repr)
def test_caption_length(value: Any) -> None:
    refused(Caption, "length", image=b"x", length=value)


@pytest.mark.parametrize(
    "refs",
    [
        5,
        None,
        "ab",
        b"ab",
        {(0.5, 0.5)},
        [0.5, 0.5],
        [(0.5,)],
        [(0.1, 0.2, 0.3)],
        [(0.1, 0.2, 0.3, 0.4, 0.5)],
        ["ab"],
        [b"ab"],
        [(0.5, "0.5")],
        [(0.5, None)],
        [(0.5, True)],
        [(0.5, -0.001)],
        [(0.5, 1.001)],
        [(0.5, NAN)],
        [(INF, 0.5)],
        [(0.5, 10**400)],
        [(0.5, 0.5), (0.6, 0.1, 0.5, 0.9)],
        [(0.1, 0.9, 0.5, 0.8)],
        [(0.5, 0.5)] * 1025,
    ],
    ids=lambda refs: repr(refs)[:30],
)
def test_bad_spatial_refs(refs: Any) -> None:
    refused(Query, "spatial_refs", question="x", spatial_refs=refs)
    refused(Point, "spatial_refs", image=b"x", object="x", spatial_refs=refs)


@pytest.mark.parametrize(
    "refs", [(), [], [(0, 1)], [[0.5, 0.5]], ((0.1, 0.2, 0.1, 0.2),), [(0.0, 0.0, 1.0, 1.0)], [(0.5, 0.5)] * 1024]
)
def test_good_spatial_refs(refs: Any) -> None:
    assert Query(question="x", spatial_refs=refs).spatial_refs == refs


@pytest.mark.parametrize("value", [None, [], (), "hello", b"hello", 5, USER, iter([USER])], ids=lambda v: repr(v)[:20])
def test_messages_must_be_a_filled_list(value: Any) -> None:
    refused(Chat, "messages", messages=value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Caption, {"image": b"x", "length": "x" * 100_000}),
        (Sampling, {"temperature": "x" * 100_000}),
        (Sampling, {"max_tokens": ["x"] * 100_000}),
        (Query, {"question": "x", "reasoning": "x" * 100_000}),
        (Query, {"question": "x", "spatial_refs": [("x" * 100_000, 0.5)]}),
    ],
    ids=["length", "temperature", "max_tokens", "reasoning", "spatial_refs"],
)
def test_a_message_does_not_grow_with_what_it_refuses(kind: Any, values: dict[str, Any]) -> None:
    refused(kind, list(values)[-1], **values)


def test_requests_are_frozen_and_take_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Query(question="x").question = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Query("x")  # type: ignore[call-arg,arg-type]
    assert Query(question="x") == Query(question="x")


def test_numbers_of_numpy_are_numbers() -> None:
    request = Query(
        question="a",
        temperature=np.float32(0.5),
        max_tokens=np.int64(5),
        seed=np.uint64(2**63),
        spatial_refs=[tuple(np.array([0.25, 0.5], dtype=np.float32))],
        stop=None,
    )
    assert request.stop_strings == ()
    with pytest.raises(RequestError):
        Query(question="a", temperature=np.bool_(True))  # type: ignore[arg-type]


def test_a_picture_does_not_flood_a_repr() -> None:
    assert len(repr(Query(question="a", image=bytes(10_000)))) < 300
