"""Conversations: the order of a turn, system messages, and every malformed message blamed by its place."""

from __future__ import annotations

from typing import Any

import pytest

import mdinfer
from mdinfer import Chat, RequestError
from mdinfer.kernels import TokenKind
from mdinfer.skills import Compiled, Context, compile_request

PNG = "data:image/png;base64,AAAA"


@pytest.fixture(scope="module")
def context(engine_a: mdinfer.Engine) -> Context:
    return engine_a._context


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(value: Any = b"a") -> dict[str, Any]:
    return {"type": "image", "image": value}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


def compiled(context: Context, *messages: Any, reasoning: bool = False) -> Compiled:
    return compile_request(Chat(messages=messages, reasoning=reasoning), context)


def layout(context: Context, *messages: Any, reasoning: bool = False) -> list[Any]:
    """Token ids, with "I" in the place of each image."""
    found = compiled(context, *messages, reasoning=reasoning)
    out: list[Any] = []
    for at, (token, kind) in enumerate(zip(found.prompt.tokens, found.prompt.kinds, strict=True)):
        if kind != TokenKind.IMAGE:
            out.append(int(token))
        elif at in found.prompt.images:
            out.append("I")
    return out


def block(context: Context, words: str, end: int = 3) -> list[int]:
    return [1, 422, 2, *context.tokenizer.encode(words), end]


def test_one_question(context: Context) -> None:
    assert layout(context, user("cat?")) == [0, *block(context, "cat?")]
    assert layout(context, user("cat?"), reasoning=True) == [0, *block(context, "cat?", 4)]


def test_turns(context: Context) -> None:
    """Only the last opener is the thinking one; the assistant's text stands bare."""
    found = layout(context, user("one"), assistant("two"), user("three"), reasoning=True)
    assert found == [0, *block(context, "one"), *context.tokenizer.encode("two"), *block(context, "three", 4)]


def test_images_move_before_the_text_of_their_turn(context: Context) -> None:
    found = layout(context, user(text("one"), image(), image()), assistant("x"), user(text("two"), image()))
    expected = [0, "I", "I", *block(context, "one"), *context.tokenizer.encode("x"), "I", *block(context, "two")]
    assert found == expected


def test_pictures_are_in_the_order_of_the_conversation(context: Context) -> None:
    found = compiled(
        context,
        user(image(b"a"), text("x"), image(b"b")),
        assistant("y"),
        user({"type": "image_url", "image_url": PNG}),
    )
    assert [(p.source, p.data_url, p.param) for p in found.pictures] == [
        (b"a", False, "messages.0.content.0.image"),
        (b"b", False, "messages.0.content.2.image"),
        (PNG, True, "messages.2.content.0.image_url"),
    ]


@pytest.mark.parametrize("url", [PNG, {"url": PNG}, {"url": PNG, "detail": "low"}], ids=["string", "object", "detail"])
def test_an_image_url(context: Context, url: Any) -> None:
    assert compiled(context, user({"type": "image_url", "image_url": url})).pictures[0].source == PNG


def test_text_parts_are_lines(context: Context) -> None:
    assert layout(context, user(text("one"), image(), text("two"))) == [0, "I", *block(context, "one\ntwo")]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_goes_before_the_first_user_text(context: Context, role: str) -> None:
    expected = [0, *block(context, "be brief\n\none"), *context.tokenizer.encode("two"), *block(context, "three")]
    assert layout(context, system("be brief", role), user("one"), assistant("two"), user("three")) == expected
    parts = system([text("be"), text("brief")], role)
    assert layout(context, parts, user("one")) == [0, *block(context, "be\nbrief\n\none")]


def test_a_system_message_before_a_picture_alone(context: Context) -> None:
    assert layout(context, system("be brief"), user(image())) == [0, "I", *block(context, "be brief")]


def test_an_empty_system_message_is_nothing(context: Context) -> None:
    assert layout(context, system(""), user("one")) == layout(context, user("one"))


def test_a_system_message_when_the_assistant_speaks_first(context: Context) -> None:
    found = layout(context, system("be brief"), assistant("hello"), user("one"))
    assert found == [0, *context.tokenizer.encode("hello"), *block(context, "be brief\n\none")]


@pytest.mark.parametrize("content", [None, "", []], ids=repr)
def test_an_assistant_may_have_said_nothing(context: Context, content: Any) -> None:
    assert layout(context, user("one"), assistant(content), user("two")) == [
        0,
        *block(context, "one"),
        *block(context, "two"),
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([5], "messages.0"),
        ([user("x"), None], "messages.1"),
        ([user("x"), "y"], "messages.1"),
        ([{}], "messages.0.role"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": "tool", "content": "x"}], "messages.0.role"),
        ([{"role": ["user"], "content": "x"}], "messages.0.role"),
        ([{"role": None, "content": "x"}], "messages.0.role"),
        ([user("x"), system("y"), user("z")], "messages.1.role"),
        ([system("x"), system("y", "developer"), user("z")], "messages.1.role"),
        ([system("x")], "messages.0.role"),
        ([user("x"), assistant("y")], "messages.1.role"),
        ([assistant("y")], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        ([{"role": "user", "content": b"x"}], "messages.0.content"),
        ([{"role": "user", "content": {"type": "text"}}], "messages.0.content"),
        ([{"role": "system", "content": None}, user("x")], "messages.0.content"),
        ([user("")], "messages.0.content"),
        ([user()], "messages.0.content"),
        ([user("x"), assistant("y"), user(text(""))], "messages.2.content"),
        ([user("a\ud800")], "messages.0.content"),
        ([user("x"), assistant("\udfff"), user("y")], "messages.1.content"),
        ([user("x", "y")], "messages.0.content.0.type"),
        ([user(text("x"), 5)], "messages.0.content.1.type"),
        ([user({"text": "x"})], "messages.0.content.0.type"),
        ([user({"type": "input_audio"})], "messages.0.content.0.type"),
        ([user({"type": ["text"]})], "messages.0.content.0.type"),
        ([user({"type": "text"})], "messages.0.content.0.text"),
        ([user(text(None))], "messages.0.content.0.text"),
        ([user(text(5))], "messages.0.content.0.text"),
        ([user(text("ok"), text("\ud800"))], "messages.0.content.1.text"),
        ([user(image(None))], "messages.0.content.0.image"),
        ([user({"type": "image"})], "messages.0.content.0.image"),
        ([user({"type": "image_url"})], "messages.0.content.0.image_url"),
        ([user({"type": "image_url", "image_url": {}})], "messages.0.content.0.image_url"),
        ([user({"type": "image_url", "image_url": {"url": 5}})], "messages.0.content.0.image_url"),
        ([user({"type": "image_url", "image_url": None})], "messages.0.content.0.image_url"),
        ([system([image()]), user("x")], "messages.0.content.0"),
        ([user("x"), assistant([text("y"), image()]), user("z")], "messages.1.content.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_message(context: Context, messages: list[Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled(context, *messages)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


def test_long_roles_and_types_are_not_quoted_in_full(context: Context) -> None:
    for message in ({"role": "x" * 100_000, "content": "y"}, user({"type": "x" * 100_000})):
        with pytest.raises(RequestError) as caught:
            compiled(context, message)
        assert len(str(caught.value)) < 300
