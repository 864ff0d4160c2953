"""A runner without a model: the protocol of the real one, and tokens that give away every wrong key.

The key of a position is a function of its input, its place and all keys that it attends to, read from the pages of
the cache as the model would; a token is a function of all keys before it. So a page of another sequence, a slot that
was not written or a copy that was not made changes the answer. `solitary` is the answer of a sequence that has
the world to itself, from the same functions and a plain list.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from mdinfer.config import TokenConfig
from mdinfer.decode_table import decode_table
from mdinfer.flight import Landing
from mdinfer.kernels import TokenKind
from mdinfer.pictures import LoadedPicture
from mdinfer.prompts import Prompt
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.step_plan import Chunk, StepPlan

EOS = TokenConfig().eos_id
VOCABULARY = 40
_TABLE = decode_table(TokenConfig())
FOLLOWS: list[list[int]] = _TABLE.follows.tolist()
_ALLOWED: list[list[bool]] = _TABLE.allowed.tolist()
_KINDS: list[list[int]] = _TABLE.kinds.tolist()
_PLAIN = len(FOLLOWS[0]) - 1
_CHOICES = [[t for t in range(VOCABULARY) if row[min(t, _PLAIN)]] for row in _ALLOWED]

_MASK = (1 << 64) - 1
_POWERS = np.cumprod(np.full(4096, 0x9E3779B97F4A7C15, dtype=np.uint64))
Keys = npt.NDArray[np.uint64]


def mix(*parts: int) -> int:
    value = 0x2545F4914F6CDD1D
    for part in parts:
        value = ((value ^ part) * 0xBF58476D1CE4E5B9) & _MASK
        value ^= value >> 29
    return value


def fold(keys: Keys) -> int:
    """Of keys in their order."""
    return int((keys * _POWERS[: len(keys)]).sum(dtype=np.uint64))


def features(picture: LoadedPicture) -> int:
    return int.from_bytes(picture.digest[:7], "little")


def input_of(token: int, kind: int, value: tuple[float, float]) -> int:
    if kind == TokenKind.TEXT:
        return mix(token)
    return mix(
        kind, *np.array(value[:1] if kind == TokenKind.COORD else value, dtype=np.float32).view(np.uint32).tolist()
    )


def prompt_keys(prompt: Prompt, pictures: Seq[LoadedPicture], before: Keys, end: int) -> Keys:
    """Keys of the prompt's positions len(before) .. end - 1; no block is cut."""
    keys, state = list[int](), fold(before)
    blocks = {start: (stop, picture) for (start, stop), picture in zip(prompt.blocks, pictures, strict=True)}
    position = len(before)
    while position < end:
        stop, seen = position + 1, 0
        if position in blocks:
            stop, picture = blocks[position]
            assert picture.encoded and picture.features is not None, "a picture was not encoded in time"
            seen = int(picture.features.item())
        assert stop <= end, "a block was cut"
        assert (prompt.visible[position:stop] == stop).all(), "a chunk begins or ends within a block"
        run = []
        for p in range(position, stop):
            width, height = prompt.values[p].tolist()
            run.append(mix(state, seen, p, input_of(int(prompt.tokens[p]), int(prompt.kinds[p]), (width, height))))
        state = (state + fold_at(run, position)) & _MASK
        keys += run
        position = stop
    return np.array(keys, dtype=np.uint64)


def fold_at(keys: list[int], position: int) -> int:
    return sum(key * int(power) for key, power in zip(keys, _POWERS[position:], strict=False)) & _MASK


def next_token(keys: Keys, state: int) -> tuple[SampledToken, int]:
    """What follows positions with these keys, and the state after it."""
    value = mix(fold(keys))
    choices = _CHOICES[state]
    token = choices[value % len(choices)]
    kind = _KINDS[state][min(token, _PLAIN)]
    pair = ((value >> 20) % 1024 / 1024, (value >> 30) % 1024 / 1024) if kind != TokenKind.TEXT else (0.0, 0.0)
    return SampledToken(token, kind, pair), FOLLOWS[state][min(token, _PLAIN)]


def solitary(prompt: Prompt, pictures: Seq[LoadedPicture], state: int, max_positions: int) -> list[SampledToken]:
    """Tokens of a sequence that runs alone, to the closing one or to max_positions."""
    seen = [LoadedPicture(digest=p.digest, features=torch.tensor(features(p))) for p in pictures]
    keys = prompt_keys(prompt, seen, np.empty(0, np.uint64), len(prompt))
    tokens = list[SampledToken]()
    while True:
        token, after = next_token(keys, state)
        tokens.append(token)
        if token.token == EOS or len(keys) + 1 >= max_positions:
            return tokens
        state = after
        key = mix(fold(keys), 0, len(keys), input_of(token.token, token.kind, token.value))
        keys = np.append(keys, np.uint64(key))


class FakeFlight:
    """A step under way; `read` waits for its tokens."""

    def __init__(self, tokens: list[SampledToken]) -> None:
        self._landing = Landing(tokens)

    def read(self) -> Landing:
        return self._landing


class FakeRunner:
    """Does at launch what a device does in its own time, in the same order: steps are never reordered."""

    def __init__(self, pages: int, page_size: int, *, max_batch_size: int) -> None:
        self._size = page_size
        self._keys = np.random.default_rng(0).integers(0, 1 << 63, (pages, page_size), dtype=np.uint64)
        # By slot: what the next step is fed, as on the device.
        self._next: list[tuple[SampledToken, int] | None] = [None] * max_batch_size
        self.encoded = 0
        self.rows = 0

    def launch(self, plan: StepPlan, *, sparing: bool = False) -> FakeFlight:
        self._encode(plan.pictures)
        copies = plan.copies
        assert not {c.source for c in copies} & {c.into for c in copies}
        assert len({c.into for c in copies}) == len(copies)
        for copy in copies:
            self._keys[copy.into] = self._keys[copy.source]
        slots = [chunk.sequence.slot for chunk in plan.chunks]
        assert len(set(slots)) == len(slots) and min(slots) >= 0
        written = [place for chunk in plan.chunks for place in self._places(chunk)]
        assert len(set(written)) == len(written), "two sequences write to one slot"
        tokens = [self._prefill(chunk) for chunk in plan.prefill] + [self._decode(chunk) for chunk in plan.decode]
        return FakeFlight([token for token in tokens if token is not None])

    def _encode(self, pictures: Seq[LoadedPicture]) -> None:
        assert len({id(p) for p in pictures}) == len(pictures)
        for picture in pictures:
            assert not picture.encoded and picture.crops is not None
            picture.encode(torch.tensor(features(picture)))
            self.encoded += 1

    def _prefill(self, chunk: Chunk) -> SampledToken | None:
        sequence, asked = chunk.sequence, len(chunk.sequence.prompt)
        assert chunk.start < chunk.end <= sequence.length
        assert chunk.samples == (chunk.end == sequence.length)
        if chunk.start < asked:
            before, end = self._read(sequence, chunk.start), min(asked, chunk.end)
            self._write(sequence, chunk.start, prompt_keys(sequence.prompt, sequence.pictures, before, end))
        for position in range(max(asked, chunk.start), chunk.end):
            self._write_one(sequence, position, sequence.sampled[position - asked])
        self.rows += chunk.end - chunk.start
        return self._sample(sequence, chunk.end, sequence.state) if chunk.samples else None

    def _decode(self, chunk: Chunk) -> SampledToken:
        fed = self._next[chunk.sequence.slot]
        assert chunk.end == chunk.start + 1 and chunk.samples and fed is not None
        self._write_one(chunk.sequence, chunk.start, fed[0])
        self.rows += 1
        return self._sample(chunk.sequence, chunk.end, fed[1])

    def _sample(self, sequence: Sequence, end: int, state: int) -> SampledToken:
        assert end < sequence.max_positions
        token, after = next_token(self._read(sequence, end), state)
        self._next[sequence.slot] = token, after
        return token

    def _places(self, chunk: Chunk) -> list[tuple[int, int]]:
        pages = chunk.sequence.pages
        return [(pages[p // self._size], p % self._size) for p in range(chunk.start, chunk.end)]

    def _read(self, sequence: Sequence, end: int) -> Keys:
        return self._keys[sequence.pages[: -(-end // self._size)]].reshape(-1)[:end]

    def _write(self, sequence: Sequence, start: int, keys: Keys) -> None:
        for position, key in enumerate(keys, start):
            self._keys[sequence.pages[position // self._size], position % self._size] = key

    def _write_one(self, sequence: Sequence, position: int, token: SampledToken) -> None:
        key = mix(fold(self._read(sequence, position)), 0, position, input_of(token.token, token.kind, token.value))
        self._write(sequence, position, np.array([key], dtype=np.uint64))
