"""What the engine gives back: frozen values, the same for a whole answer and for its stream of events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length"]


class Box(NamedTuple):
    """Corners as fractions of the picture's width and height."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class XY(NamedTuple):
    """A point as fractions of the picture's width and height."""

    x: float
    y: float


class Grounding(NamedTuple):
    """The points that characters start_idx..end_idx of a reasoning trace speak of."""

    start_idx: int
    end_idx: int
    points: list[XY]


class TopLogprob(NamedTuple):
    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log of the chosen token's probability, at temperature 1 among the tokens allowed at its place.

    `data` are the token's bytes; `token` is their text, with U+FFFD for the part of a character.
    """

    token_id: int
    token: str
    data: bytes
    logprob: float
    top: list[TopLogprob]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts; image and cached tokens are part of the prompt's, reasoning tokens of the completion's."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Seconds: image decoding, waiting for admission, prefill with vision, first token since submit, decode, all.

    vision_s is what the vision tower took of prefill_s, in steps that this request may have shared with others.
    """

    image_s: float
    queue_s: float
    vision_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine at one moment; the counts from prefix_queries on are since it was loaded.

    running, waiting    requests in the batch, and all others that were submitted and have not ended
    pages_total         pages of the KV cache: free ones, cached ones (which can be had at once), those in use
    prefix_queries      prompt tokens looked up in the prefix cache, and how many of them were found
    """

    running: int
    waiting: int
    pages_total: int
    pages_free: int
    pages_cached: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    steps: int
    images_encoded: int
    prompt_tokens: int
    generation_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished answer. Text skills fill `text`; Detect fills `objects`, Point `points`.

    token_ids are the answer's without the closing token; for Detect and Point the coordinate and size tokens.
    reasoning is None unless a trace was asked for; grounding and reasoning_token_ids belong to it.
    """

    text: str = ""
    reasoning: str | None = None
    grounding: list[Grounding] = field(default_factory=list)
    objects: list[Box] = field(default_factory=list)
    points: list[XY] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reasoning_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason
    usage: Usage
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of a stream: more text, more of the trace, a point, a box; the last event says why it ended.

    Concatenated `text` (and `reasoning`) equal the finished result's exactly. `logprobs` covers the answer
    tokens that became known with this event. Only the last event has finish_reason, usage and result.
    """

    text: str = ""
    reasoning: str = ""
    point: XY | None = None
    box: Box | None = None
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    result: Result | None = None
