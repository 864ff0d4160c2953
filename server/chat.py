"""POST /v1/chat/completions: OpenAI's request in, the engine's Chat through, OpenAI's response out."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mdinfer import __version__
from mdinfer.request import Chat
from mdinfer.result import Event, Result, TokenLogprob, Usage
from mdinfer.server.answers import grounding
from mdinfer.server.body import read_body
from mdinfer.server.call import call_of
from mdinfer.server.errors import json_response
from mdinfer.server.exchange import finished
from mdinfer.server.messages import check_count, check_messages
from mdinfer.server.schema import ChatBody, check_unsupported, log_unknown, parse
from mdinfer.server.service import Service, service_of
from mdinfer.server.settings import Settings
from mdinfer.server.stream import EventStream

LEAST_LOGPROB = -9999.0


async def chat_completions(http: Request) -> Response:
    service = service_of(http)
    service.check_room()
    body = await read_body(http, service, functools.partial(_understand, service), bulk="messages")
    model = call_of(http.scope).model = service.check_model(body.model)
    chats = chat_requests(body)
    dialect = Completion.of(body, model, service.settings)
    if body.stream:
        return EventStream(http, chats, dialect)
    return json_response(dialect.response(await finished(http, chats)))


def _understand(service: Service, fields: dict[str, Any]) -> ChatBody:
    check_unsupported(fields)
    check_count(fields.get("messages"))
    body = parse(ChatBody, fields)
    log_unknown(ChatBody, fields)
    service.check_model(body.model)
    check_messages(body.messages, service.settings.max_images)
    return body


def chat_requests(body: ChatBody) -> list[Chat]:
    """One engine request a choice; choices of a seeded request take consecutive seeds."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    stated = {"max_tokens": limit, "temperature": body.temperature, "top_p": body.top_p, "stop": body.stop}
    options: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    chat = Chat(messages=body.messages, reasoning=body.wants_reasoning(), **options)
    if (body.n or 1) == 1 and body.seed is None:
        return [chat]
    seeds = [None if body.seed is None else body.seed + i for i in range(body.n or 1)]
    return [Chat(messages=body.messages, reasoning=chat.reasoning, **{**options, "seed": seed}) for seed in seeds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One completion's identity, and its two wire forms: the whole response, or a stream's dialect."""

    id: str
    created: int
    model: str
    choices: int
    reasoning: bool
    include_usage: bool
    reasoning_names: tuple[str, ...]

    @classmethod
    def of(cls, body: ChatBody, model: str, settings: Settings) -> Completion:
        options = body.stream_options
        return cls(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            choices=body.n or 1,
            reasoning=body.wants_reasoning(),
            include_usage=bool(options and options.include_usage),
            reasoning_names=tuple(filter(None, ("reasoning", settings.reasoning_alias))),
        )

    def response(self, results: Sequence[Result]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": self._message(result),
                "logprobs": logprobs(result.logprobs),
                "finish_reason": result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        return {**self._envelope("chat.completion"), "choices": choices, "usage": usage(results)}

    def _message(self, result: Result) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
        if self.reasoning:
            message |= self._reasoning(result.reasoning or "")
        return message | _details(result)

    def _reasoning(self, text: str) -> dict[str, str]:
        return dict.fromkeys(self.reasoning_names, text)

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"mdinfer-{__version__}",
        }

    # The stream's dialect

    def opening(self) -> Iterator[object]:
        for index in range(self.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def chunks(self, index: int, event: Event) -> Iterator[object]:
        if event.reasoning and self.reasoning:
            yield self._chunk(index, self._reasoning(event.reasoning))
        if event.text or event.logprobs:
            yield self._chunk(index, {"content": event.text}, tokens=event.logprobs)
        if event.finish_reason is not None:
            if event.result is not None and (details := _details(event.result)):
                yield self._chunk(index, details)
            yield self._chunk(index, {}, finish_reason=event.finish_reason)

    def closing(self, results: Sequence[Result]) -> Iterator[object]:
        if self.include_usage:
            yield {**self._envelope("chat.completion.chunk"), "choices": [], "usage": usage(results)}

    @property
    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        tokens: Sequence[TokenLogprob] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(tokens),
            "finish_reason": finish_reason,
        }
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk


def usage(results: Sequence[Result]) -> dict[str, Any]:
    """Tokens of all choices together; their common prompt counts once."""
    prompt: Usage = results[0].usage
    completion = sum(result.usage.completion_tokens for result in results)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt.prompt_tokens + completion,
        "prompt_tokens_details": {
            "cached_tokens": prompt.cached_tokens,
            "image_tokens": prompt.image_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": sum(result.usage.reasoning_tokens for result in results)},
    }


def logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [
        {
            "token": token.token,
            "logprob": max(token.logprob, LEAST_LOGPROB),
            "bytes": list(token.data),
            "top_logprobs": [
                {"token": top.token, "logprob": max(top.logprob, LEAST_LOGPROB), "bytes": _bytes(top.token)}
                for top in token.top
            ],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _bytes(token: str) -> list[int] | None:
    """None where the text stands for a part of a character."""
    return None if "\ufffd" in token else list(token.encode())


def _details(result: Result) -> dict[str, Any]:
    return {"reasoning_details": {"grounding": grounding(result.grounding)}} if result.grounding else {}
