"""Chat: one BOS, then for each user turn its images, the query prefix, its text and an opener; assistant text bare.

A system message stands before the first user text, a blank line between. Images of a turn come before its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdinfer.data_url import DataUrl
from mdinfer.decode_table import State
from mdinfer.errors import PromptTooLongError, RequestError
from mdinfer.request import Chat, check_text
from mdinfer.skills.compiled import Compiled, Context, Picture, sampling_params
from mdinfer.skills.query import opener
from mdinfer.skills.text_output import TextOutput

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str
    pictures: tuple[Picture, ...] = ()


def compile_chat(request: Chat, context: Context) -> Compiled:
    tokens = context.config.tokenizer
    if len(request.messages) > context.max_context:
        raise PromptTooLongError(len(request.messages), context.max_context, counted=False, param="messages")
    turns = _turns(request.messages)
    pictures = sum(len(turn.pictures) for turn in turns)
    context.check_length(sum(len(t.text) for t in turns), pictures * context.config.vision.positions)
    prompt = context.prompt()
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt.text(context.encode(turn.text))
            continue
        for _ in turn.pictures:
            prompt.image()
        last = i == len(turns) - 1
        prompt.text(tokens.templates.query.prefix).text(context.encode(turn.text))
        prompt.text(opener(tokens, request.reasoning and last))
    return Compiled(
        prompt=prompt.build(),
        pictures=tuple(picture for turn in turns for picture in turn.pictures),
        state=State.REASONING if request.reasoning else State.ANSWER,
        sampling=sampling_params(request),
        max_tokens=int(request.max_tokens),
        output=TextOutput.of(request, context, reasoning=request.reasoning),
    )


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[_Turn]:
    """Checked turns, the system message folded into the first user turn. Raises RequestError."""
    turns = [_turn(message, i) for i, message in enumerate(messages)]
    system = ""
    if turns[0].role in ("system", "developer"):
        system = turns.pop(0).text
    if not turns or turns[-1].role != "user":
        at = len(messages) - 1
        raise RequestError("the last message must be from the user", param=f"messages.{at}.role")
    if not turns[-1].text and not turns[-1].pictures:
        at = len(messages) - 1
        raise RequestError("the last message needs text or an image", param=f"messages.{at}.content")
    if system:
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        text = "\n\n".join(part for part in (system, turns[first].text) if part)
        turns[first] = _Turn("user", text, turns[first].pictures)
    return turns


def _turn(message: Mapping[str, Any], index: int) -> _Turn:
    at = f"messages.{index}"
    if not isinstance(message, Mapping):
        raise RequestError("each message must be an object with a role and a content", param=at)
    role = message.get("role")
    if role not in _ROLES:
        raise RequestError(f"role must be one of {', '.join(_ROLES)}, found {role!r:.40}", param=f"{at}.role")
    if role in ("system", "developer") and index > 0:
        raise RequestError(f"a {role} message must be the first one", param=f"{at}.role")
    content = message.get("content")
    if isinstance(content, str):
        _check_content_text(content, f"{at}.content")
        return _Turn(role, content)
    if content is None and role == "assistant":
        return _Turn(role, "")
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError("content must be a string or a list of parts", param=f"{at}.content")
    texts, pictures = [], []
    for i, part in enumerate(content):
        found = _part(part, role, f"{at}.content.{i}")
        if isinstance(found, Picture):
            pictures.append(found)
        else:
            texts.append(found)
    return _Turn(role, "\n".join(texts), tuple(pictures))


def _part(part: object, role: str, at: str) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image", "image_url"):
        raise RequestError(f"a part's type must be text, image or image_url, found {kind!r:.40}", param=f"{at}.type")
    if kind == "text":
        text = part.get("text")
        _check_content_text(text, f"{at}.text")
        return str(text)
    if role != "user":
        raise RequestError(f"a {role} message cannot hold images, only user messages can", param=at)
    if kind == "image":
        if part.get("image") is None:
            raise RequestError("an image part needs an image", param=f"{at}.image")
        return Picture(source=part["image"], param=f"{at}.image")
    url = part.get("image_url")
    if isinstance(url, Mapping):
        url = url.get("url")
    if not isinstance(url, str | DataUrl):
        raise RequestError('image_url must be a string or {"url": string}', param=f"{at}.image_url")
    return Picture(source=url, data_url=True, param=f"{at}.image_url")


def _check_content_text(text: object, at: str) -> None:
    try:
        check_text("content", text)
    except RequestError as error:
        raise RequestError(str(error), param=at) from None
