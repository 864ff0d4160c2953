"""Text answers: a reasoning trace with grounding, then the answer, cut at stop strings, token by token."""

from __future__ import annotations

from typing import Any

from mdinfer.config import TokenConfig
from mdinfer.kernels import TokenKind
from mdinfer.request import Sampling
from mdinfer.result import XY, Event, Grounding, TokenLogprob, TopLogprob
from mdinfer.sequence import SampledToken
from mdinfer.skills.compiled import Context
from mdinfer.tokenizer import Tokenizer


class TextOutput:
    """Concatenated event texts equal the final ones: characters and possible stop strings are held back whole."""

    def __init__(
        self,
        tokens: TokenConfig,
        tokenizer: Tokenizer,
        *,
        stop: tuple[str, ...],
        logprobs: bool,
        reasoning: bool,
    ) -> None:
        self._tokens, self._tokenizer, self._stop = tokens, tokenizer, stop
        self._trace = _Trace(tokens, tokenizer) if reasoning else None
        self._thinking = reasoning
        self._decoder = tokenizer.decoder()
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self._told: list[TokenLogprob] = []
        self._text = ""
        self._held = ""
        self.complete = False

    @classmethod
    def of(cls, request: Sampling, context: Context, *, reasoning: bool) -> TextOutput:
        return cls(
            context.config.tokenizer,
            context.tokenizer,
            stop=request.stop_strings,
            logprobs=request.logprobs is not None,
            reasoning=reasoning,
        )

    def push(self, token: SampledToken) -> Event | None:
        if self._thinking:
            assert self._trace is not None
            if token.token == self._tokens.answer_id:
                self._thinking = False
                return _reasoning_event(self._trace.close())
            return _reasoning_event(self._trace.push(token))
        self._token_ids.append(token.token)
        if self._logprobs is not None:
            self._logprobs.append(self._logprob(token))
            self._told.append(self._logprobs[-1])
        return self._emit(self._decoder.push(token.token))

    def close(self) -> Event | None:
        if self._thinking:
            assert self._trace is not None
            return _reasoning_event(self._trace.close())
        if self.complete:
            return None
        return self._emit(self._decoder.flush(), last=True)

    def fields(self) -> dict[str, Any]:
        return {
            "text": self._text,
            "reasoning": self._trace.text if self._trace else None,
            "grounding": self._trace.grounding if self._trace else [],
            "reasoning_token_ids": self._trace.token_ids if self._trace else [],
            "token_ids": self._token_ids,
            "logprobs": self._logprobs,
        }

    def _emit(self, text: str, *, last: bool = False) -> Event | None:
        """Add decoded text to the answer, except a tail that may yet turn out to be a stop string."""
        pending = self._held + text
        found = [at for stop in self._stop if (at := pending.find(stop)) >= 0]
        if found:
            pending, self._held, self.complete = pending[: min(found)], "", True
        else:
            keep = 0 if last else _possible_stop(pending, self._stop)
            pending, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self._text += pending
        told, self._told = self._told, []
        if not pending and not told:
            return None
        return Event(text=pending, logprobs=told if self._logprobs is not None else None)

    def _logprob(self, token: SampledToken) -> TokenLogprob:
        data = self._tokenizer.token_bytes(token.token)
        assert token.logprob is not None
        return TokenLogprob(
            token_id=token.token,
            token=data.decode("utf-8", "replace"),
            data=data,
            logprob=token.logprob,
            top=[
                TopLogprob(i, self._tokenizer.token_bytes(i).decode("utf-8", "replace"), value)
                for i, value in token.top
            ],
        )


class _Trace:
    """The reasoning before an answer: ground-start and ground-end tokens cut it into chunks.

    Each chunk is decoded on its own; one with at least two coordinates grounds its span of characters in points,
    and an odd last coordinate is dropped.
    """

    def __init__(self, tokens: TokenConfig, tokenizer: Tokenizer) -> None:
        self._cuts = (tokens.start_ground_points_id, tokens.end_ground_id)
        self._decoder = tokenizer.decoder()
        self._chunk_start = 0
        self._coordinates: list[float] = []
        self.text = ""
        self.grounding: list[Grounding] = []
        self.token_ids: list[int] = []

    def push(self, token: SampledToken) -> str:
        text = self._end_chunk() if token.token in self._cuts else ""
        self.token_ids.append(token.token)
        if token.kind == TokenKind.COORD:
            self._coordinates.append(token.value[0])
        new = self._decoder.push(token.token)
        self.text += new
        return text + new

    def close(self) -> str:
        return self._end_chunk()

    def _end_chunk(self) -> str:
        tail = self._decoder.flush()
        self.text += tail
        values = self._coordinates
        if len(values) > 1:
            points = [XY(x, y) for x, y in zip(values[::2], values[1::2], strict=False)]
            self.grounding.append(Grounding(self._chunk_start, len(self.text), points))
        self._chunk_start, self._coordinates = len(self.text), []
        return tail


def _reasoning_event(text: str) -> Event | None:
    return Event(reasoning=text) if text else None


def _possible_stop(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest tail of `text` that begins one of `stops`."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
