"""The engine's own record of one request: its sequence, what its tokens mean, its times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mdinfer.decode_table import State
from mdinfer.handle import RequestHandle
from mdinfer.kernels import TokenKind
from mdinfer.result import Event, FinishReason, Metrics, Result, Usage
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.skills import Compiled


@dataclass(slots=True, kw_only=True, eq=False)
class Task:
    """Times are of time.perf_counter(), 0 until they come."""

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

    def __post_init__(self) -> None:
        self.state = self.compiled.state

    def prepared(self) -> None:
        """The pictures are read."""
        self.ready = time.perf_counter()

    def admit(self) -> None:
        """The sequence runs, from now on or again."""
        self.admitted = self.admitted or time.perf_counter()

    def commit(self, token: SampledToken) -> bool:
        """Tell the handle of a token that the sequence has taken; True if the request is finished with it."""
        if not token.sound:
            raise ArithmeticError("the model's numbers are not finite")
        now = time.perf_counter()
        self.first_token = self.first_token or now
        if token.token == self.eos_id and self.state != State.REASONING:
            self._finish("stop", now)
            return True
        before, self.state = self.state, self.sequence.state
        closes_trace = before == State.REASONING and self.state == State.ANSWER
        self.counted += not closes_trace
        event = self.compiled.output.push(token)
        if event is not None:
            self.handle._push(event)
        if self.compiled.output.complete:
            self._finish("stop", now)
            return True
        if self.counted >= self.compiled.max_tokens or self.sequence.length >= self.sequence.max_positions:
            self._finish("length", now)
            return True
        return False

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
                prefill_s=self.first_token - self.admitted,
                ttft_s=self.first_token - self.submitted,
                decode_s=now - self.first_token,
                total_s=now - self.submitted,
            ),
        )
        self.handle._push(Event(finish_reason=reason, usage=result.usage, result=result))
