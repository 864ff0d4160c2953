"""The engine's own record of one request: its sequence, what its tokens mean, its times."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from mdinfer.decode_table import State
from mdinfer.errors import MdinferError
from mdinfer.handle import RequestHandle
from mdinfer.kernels import TokenKind
from mdinfer.result import Event, FinishReason, Metrics, Result, Usage
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.skills import Compiled


class News(NamedTuple):
    """A token of a task (None for the closing one), the time it was read, and why it is the last one, if it is."""

    task: Task
    token: SampledToken | None
    time: float
    reason: FinishReason | None


@dataclass(slots=True, kw_only=True, eq=False)
class Task:
    """Times are of time.perf_counter(), 0 until they come; `due` is when it ends unfinished."""

    handle: RequestHandle
    compiled: Compiled
    sequence: Sequence
    eos_id: int
    state: int = State.ANSWER
    counted: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    ready: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    vision_s: float = 0.0
    due: float = math.inf

    def __post_init__(self) -> None:
        self.state = self.compiled.state

    def prepared(self) -> None:
        """The pictures are read."""
        self.ready = time.perf_counter()

    def admit(self) -> None:
        """The sequence runs from now on."""
        self.admitted = time.perf_counter()

    def fail(self, error: MdinferError) -> None:
        """End without a result, unless it has ended."""
        self.handle._fail(error)

    def take(self, token: SampledToken, now: float) -> News:
        """Count a token that the sequence has taken, and see whether the request is finished with it."""
        self.first_token = self.first_token or now
        if token.token == self.eos_id and self.state != State.REASONING:
            return News(self, None, now, "stop")
        before, self.state = self.state, self.sequence.state
        closes_trace = before == State.REASONING and self.state == State.ANSWER
        self.counted += not closes_trace
        full = self.counted >= self.compiled.max_tokens or self.sequence.length >= self.sequence.max_positions
        return News(self, token, now, "length" if full else None)

    def tell(self, news: News) -> bool:
        """Tell the handle of a token; True if the request is finished with it."""
        if news.token is not None:
            event = self.compiled.output.push(news.token)
            if event is not None:
                self.handle._push(event)
        reason = "stop" if self.compiled.output.complete else news.reason
        if reason is not None:
            self._finish(reason, news.time)
        return reason is not None

    def _finish(self, reason: FinishReason, now: float) -> None:
        tail = self.compiled.output.close()
        if tail is not None:
            self.handle._push(tail)
        fields = self.compiled.output.fields()
        reasoning = len(fields.get("reasoning_token_ids", ()))
        result = Result(
            **fields,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.compiled.prompt),
                completion_tokens=reasoning + len(fields["token_ids"]),
                image_tokens=int((self.compiled.prompt.kinds == TokenKind.IMAGE).sum()),
                cached_tokens=self.sequence.cached,
                reasoning_tokens=reasoning,
            ),
            metrics=Metrics(
                image_s=self.ready - self.submitted,
                queue_s=self.admitted - self.ready,
                vision_s=self.vision_s,
                prefill_s=self.first_token - self.admitted,
                ttft_s=self.first_token - self.submitted,
                decode_s=now - self.first_token,
                total_s=now - self.submitted,
            ),
        )
        self.handle._push(Event(finish_reason=reason, usage=result.usage, result=result))
