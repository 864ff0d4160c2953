"""What a skill makes of a request, and what it needs to know of the model to do so."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Protocol

from mdinfer.config import ModelConfig
from mdinfer.data_url import DataUrl
from mdinfer.decode_table import State
from mdinfer.errors import PromptTooLongError
from mdinfer.prompts import Prompt, PromptBuilder
from mdinfer.request import ImageInput, Sampling
from mdinfer.result import Event
from mdinfer.sequence import SampledToken, SamplingParams
from mdinfer.tokenizer import Tokenizer


class Output(Protocol):
    """Turns one sequence's tokens into events and, at the end, into the fields of its result."""

    @property
    def complete(self) -> bool:
        """True once the skill itself has heard enough (a stop string)."""

    def push(self, token: SampledToken) -> Event | None:
        """Take one token (never the closing one); return what it makes known, if anything."""

    def close(self) -> Event | None:
        """No more tokens come: what was held back."""

    def fields(self) -> dict[str, Any]:
        """The skill's own fields of Result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image as the request gave it, and the name of the field to blame if it cannot be read.

    data_url marks a source that is the text of a data URL: it is decoded with the picture, off the caller's thread.
    """

    source: ImageInput | DataUrl
    data_url: bool = False
    param: str = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    config: ModelConfig
    tokenizer: Tokenizer
    max_context: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Raises PromptTooLongError before the work where no tokenising could make it fit."""
        self.check_length(len(text))
        return self.tokenizer.encode(text)

    def check_length(self, characters: int, tokens: int = 0) -> None:
        """Raise PromptTooLongError if that many characters, and tokens beside them, cannot fit however cut."""
        least = tokens + characters // self.tokenizer.longest_token
        if least >= self.max_context:
            raise PromptTooLongError(least, self.max_context, counted=False)

    def prompt(self) -> PromptBuilder:
        return PromptBuilder(self.config.tokenizer.bos_id, self.config.vision.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """max_tokens counts what `output` is given, less the token that closes a reasoning trace."""

    prompt: Prompt
    pictures: tuple[Picture, ...]
    state: State
    sampling: SamplingParams
    max_tokens: int
    output: Output


def sampling_params(request: Sampling) -> SamplingParams:
    """The request's own, with a seed drawn where it has none; seeds wrap to 64 bits."""
    seed = secrets.randbits(63) if request.seed is None else int(request.seed)
    seed &= (1 << 64) - 1
    return SamplingParams(
        temperature=float(request.temperature),
        top_p=float(request.top_p),
        seed=seed - (1 << 64) if seed >> 63 else seed,
        logprobs=request.logprobs,
    )
