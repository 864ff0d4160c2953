"""An engine without a model: says what its script says, at the pace and with the faults the script asks for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mdinfer.data_url import decode_data_url
from mdinfer.errors import DeadlineError, EngineDeadError, RequestCancelledError, RequestError
from mdinfer.request import Chat, Detect, Point, Query, Request
from mdinfer.result import (
    XY,
    Box,
    Event,
    FinishReason,
    Grounding,
    Metrics,
    Result,
    TokenLogprob,
    TopLogprob,
    Usage,
)

TICK = 0.005
METRICS = Metrics(image_s=0.001, queue_s=0.0, vision_s=0.01, prefill_s=0.02, ttft_s=0.025, decode_s=0.5, total_s=0.53)


@dataclass(kw_only=True)
class Script:
    """pause: seconds before each event. fault: raised by the handle in place of event number `fault_at`.
    refusal: raised by submit."""

    text: Sequence[str] = ("Two ", "and two ", "make ", "fö", "ur ✓.")
    reasoning: Sequence[str] = ("Counting", " apples.")
    grounding: Sequence[Grounding] = ()
    objects: Sequence[Box] = (Box(0.1, 0.2, 0.3, 0.4),)
    points: Sequence[XY] = (XY(0.5, 0.25),)
    finish_reason: FinishReason = "stop"
    pause: float = 0.0
    fault: BaseException | None = None
    fault_at: int = 0
    refusal: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeStats:
    running: int
    waiting: int = 2
    pages_total: int = 100
    pages_free: int = 50
    pages_cached: int = 30
    prefix_queries: int = 40
    prefix_hits: int = 25
    preemptions: int = 1
    steps: int = 9
    images_encoded: int = 3
    prompt_tokens: int = 44
    generation_tokens: int = 20


class FakeHandle:
    def __init__(self, events: Sequence[Event], script: Script, timeout: float | None = None) -> None:
        self.request_id = f"fake-{id(self):x}"
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.events, self.script = events, script
        self.cancelled = threading.Event()
        self.finished = False

    def cancel(self) -> None:
        if not self.finished:
            self.cancelled.set()

    def result(self, timeout: float | None = None) -> Result:
        return self._last(list(self))

    async def aresult(self) -> Result:
        return self._last([event async for event in self])

    def __iter__(self) -> Iterator[Event]:
        for i, event in enumerate(self.events):
            end = time.monotonic() + self.script.pause
            while self._waits(end):
                time.sleep(TICK)
            self._check(i)
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        for i, event in enumerate(self.events):
            end = time.monotonic() + self.script.pause
            while self._waits(end):
                await asyncio.sleep(TICK)
            self._check(i)
            yield event

    def _waits(self, end: float) -> bool:
        return time.monotonic() < end and not self.cancelled.is_set() and not self._late

    @property
    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _check(self, i: int) -> None:
        if self._late:
            raise DeadlineError("the request took longer than its timeout")
        if self.cancelled.is_set():
            raise RequestCancelledError("the request was cancelled")
        if self.script.fault is not None and i == self.script.fault_at:
            raise self.script.fault
        self.finished = i == len(self.events) - 1

    def _last(self, events: Sequence[Event]) -> Result:
        result = events[-1].result
        assert result is not None
        return result


@dataclass
class FakeEngine:
    """Keeps what was submitted. `healthy` and `script` may be changed at any time."""

    script: Script = field(default_factory=Script)
    model_id: str = "fake"
    healthy: bool = True
    full: bool = False
    closed: bool = False
    warm: bool = False
    requests: list[Request] = field(default_factory=list)
    handles: list[FakeHandle] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)

    def description(self) -> str:
        return "model     fake (untrained)\ndevice    none"

    def warm_up(self) -> None:
        self.warm = True

    def submit(
        self, request: Request, *, namespace: str = "", priority: int = 0, timeout: float | None = None
    ) -> FakeHandle:
        if not self.healthy:
            raise EngineDeadError("the engine is closed")
        if self.script.refusal is not None:
            raise self.script.refusal
        if isinstance(request, Chat):
            _check_chat(request.messages)
        self.requests.append(request)
        self.namespaces.append(namespace)
        handle = FakeHandle(self._events(request), self.script, timeout)
        self.handles.append(handle)
        return handle

    def stats(self) -> FakeStats:
        return FakeStats(running=sum(not handle.finished for handle in self.handles))

    def close(self) -> None:
        self.closed, self.healthy = True, False

    def _events(self, request: Request) -> list[Event]:
        script = self.script
        if isinstance(request, Detect | Point):
            places = {"objects": [*script.objects]} if isinstance(request, Detect) else {"points": [*script.points]}
            result = _result(script, **places)
            return [Event(finish_reason=script.finish_reason, usage=result.usage, result=result)]
        thinks = isinstance(request, Query | Chat) and request.reasoning
        events = [Event(reasoning=piece) for piece in script.reasoning] if thinks else []
        tokens: list[TokenLogprob] = []
        for piece in script.text:
            known = None if request.logprobs is None else [_logprob(piece, request.logprobs)]
            tokens += known or []
            events.append(Event(text=piece, logprobs=known))
        result = _result(
            script,
            text="".join(script.text),
            reasoning="".join(script.reasoning) if thinks else None,
            grounding=[*script.grounding] if thinks else [],
            logprobs=None if request.logprobs is None else tokens,
        )
        return [*events, Event(finish_reason=script.finish_reason, usage=result.usage, result=result)]


def _result(script: Script, **fields: Any) -> Result:
    reasoning = len(script.reasoning) if fields.get("reasoning") else 0
    usage = Usage(
        prompt_tokens=11,
        completion_tokens=len(script.text) + reasoning,
        image_tokens=3,
        cached_tokens=2,
        reasoning_tokens=reasoning,
    )
    return Result(finish_reason=script.finish_reason, usage=usage, metrics=METRICS, **fields)


def _logprob(text: str, top: int) -> TokenLogprob:
    alternatives = [
        TopLogprob(7, text, -0.5),
        TopLogprob(8, "\ufffd", -1.5),
        TopLogprob(9, "no", float("-inf")),
    ]
    return TokenLogprob(token_id=7, token=text, data=text.encode(), logprob=-0.5, top=alternatives[:top])


def _check_chat(messages: Sequence[Mapping[str, Any]]) -> None:
    """As much of the engine's own checks as the server's tests need."""
    for i, message in enumerate(messages):
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            raise RequestError("role must be one of system, user, assistant", param=f"messages.{i}.role")
        parts = message["content"] if isinstance(message.get("content"), list) else []
        for j, part in enumerate(parts):
            if part["type"] == "image_url":
                image = part["image_url"]
                url = image["url"] if isinstance(image, dict) else image
                decode_data_url(url, param=f"messages.{i}.content.{j}.image_url")
    if messages[-1]["role"] != "user":
        raise RequestError("the last message must be from the user", param=f"messages.{len(messages) - 1}.role")


def boom(fault: type[BaseException] = RuntimeError) -> BaseException:
    """A fault as bugs raise it: with a path and an address in its text."""
    return fault("/secret/path: <object at 0x7f00deadbeef>")
