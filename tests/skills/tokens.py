"""A tokenizer of given pieces, and tokens as a runner would have sampled them."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from mdinfer.config import TokenConfig
from mdinfer.kernels import TokenKind
from mdinfer.result import Event
from mdinfer.sequence import SampledToken
from mdinfer.skills.compiled import Output
from mdinfer.tokenizer import Tokenizer

IDS = TokenConfig()
FIRST = 16  # the id of the first piece


def tokenizer_of(pieces: Sequence[bytes]) -> Tokenizer:
    """Decodes id 16 + i as `pieces[i]`; it encodes nothing."""
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), (b"",) * FIRST + tuple(pieces))


BYTES = tokenizer_of([bytes([b]) for b in range(256)])
"""One token for each byte."""


def text_tokens(data: bytes) -> list[SampledToken]:
    """For the tokenizer `BYTES`."""
    return [token(FIRST + b) for b in data]


def token(token_id: int, *values: float) -> SampledToken:
    kind = TokenKind.TEXT
    if values:
        kind = TokenKind.COORD if len(values) == 1 else TokenKind.SIZE
    return SampledToken(token_id, kind, (values[0], values[-1] if len(values) > 1 else 0.0) if values else (0.0, 0.0))


def feed(output: Output, tokens: Sequence[SampledToken]) -> tuple[list[Event], int]:
    """As the engine does it: until the output is complete or tokens run out, then close. Events, tokens taken."""
    events, taken = [], 0
    for one in tokens:
        events.append(output.push(one))
        taken += 1
        if output.complete:
            break
    events.append(output.close())
    return [event for event in events if event is not None], taken
