"""Dialogues as token sequences, and many of them packed into rows of one length.

A group is a prefix (a picture, two, or a conversation that ends with one; or nothing) and the segments that follow it,
each as if it were alone: a segment sees the prefix and itself, and its positions go on from the prefix's end. So one
picture is paid for once and serves many questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tokenizers

from benchmarks.demo.dialogue import Dialogue, Exchange, Grounded
from benchmarks.demo.pictures import Shape
from mdinfer.config import ModelConfig
from mdinfer.kernels import TokenKind

ROW = 256
"""Positions of a row."""


@dataclass(slots=True)
class Stream:
    """Positions from left to right.

    tokens, kinds and values are as in mdinfer.prompts.Prompt; learned marks what the model is to predict;
    blocks are [start, end) of pictures, BOS included where the picture follows it.
    """

    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    values: list[tuple[float, float]] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(
        self,
        token: int,
        *,
        learned: bool = False,
        kind: TokenKind = TokenKind.TEXT,
        value: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.tokens.append(token)
        self.kinds.append(int(kind))
        self.values.append(value)
        self.learned.append(learned)

    def text(self, ids: list[int] | tuple[int, ...], *, learned: bool = False) -> None:
        for token in ids:
            self.add(token, learned=learned)


class Speller:
    """Dialogues to streams, exactly as `mdinfer.skills` compiles requests (a test compares them)."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, config: ModelConfig) -> None:
        self._tokenizer, self._tokens = tokenizer, config.tokenizer
        self._positions = config.vision.positions

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def opening(self, pictures: int) -> Stream:
        """BOS and the pictures."""
        stream = Stream()
        stream.add(self._tokens.bos_id)
        for _ in range(pictures):
            self.picture(stream)
        return stream

    def picture(self, stream: Stream) -> None:
        start = len(stream)
        for _ in range(self._positions):
            stream.add(0, kind=TokenKind.IMAGE)
        stream.blocks.append((0 if start == 1 else start, len(stream)))

    def body(self, dialogue: Dialogue) -> Stream:
        """What follows the pictures of the first turn: prompt and answer, closed."""
        stream, templates = Stream(), self._tokens.templates
        if dialogue.skill == "query":
            for i, exchange in enumerate(dialogue.exchanges):
                system = dialogue.system if i == 0 else ""
                self.exchange(stream, exchange, system, last=i == len(dialogue.exchanges) - 1)
            return stream
        if dialogue.skill == "caption":
            by_length = {
                "short": templates.caption_short,
                "normal": templates.caption_normal,
                "long": templates.caption_long,
            }
            stream.text(by_length[dialogue.length])
            stream.text(self.encode(dialogue.exchanges[0].answer), learned=True)
        else:
            template = templates.detect if dialogue.skill == "detect" else templates.point
            stream.text([*template.prefix, *self.encode(" " + dialogue.target), *template.suffix])
            for shape in dialogue.shapes:
                self._object(stream, shape, sized=dialogue.skill == "detect")
        stream.add(self._tokens.eos_id, learned=True)
        return stream

    def exchange(self, stream: Stream, exchange: Exchange, system: str, *, last: bool) -> None:
        tokens, query = self._tokens, self._tokens.templates.query
        stream.text(query.prefix)
        for ref in exchange.refs:
            self._reference(stream, ref)
        stream.text(self.encode(f"{system}\n\n{exchange.question}" if system else exchange.question))
        if last and exchange.trace is not None:
            stream.add(tokens.thinking_id)
            for part in exchange.trace:
                if isinstance(part, Grounded):
                    stream.add(tokens.start_ground_points_id, learned=True)
                    stream.text(self.encode(part.text), learned=True)
                    for x, y in part.points:
                        self._coordinate(stream, x, learned=True)
                        self._coordinate(stream, y, learned=True)
                    stream.add(tokens.end_ground_id, learned=True)
                else:
                    stream.text(self.encode(part), learned=True)
            stream.add(tokens.answer_id, learned=True)
        else:
            stream.text(query.suffix)
        stream.text(self.encode(exchange.answer), learned=True)
        if last:
            stream.add(tokens.eos_id, learned=True)

    def _coordinate(self, stream: Stream, value: float, *, learned: bool) -> None:
        stream.add(self._tokens.coord_id, learned=learned, kind=TokenKind.COORD, value=(value, 0.0))

    def _object(self, stream: Stream, shape: Shape, *, sized: bool) -> None:
        self._coordinate(stream, shape.x, learned=True)
        self._coordinate(stream, shape.y, learned=True)
        if sized:
            stream.add(self._tokens.size_id, learned=True, kind=TokenKind.SIZE, value=(shape.w, shape.h))

    def _reference(self, stream: Stream, ref: tuple[float, ...]) -> None:
        x, y = ref if len(ref) == 2 else ((ref[0] + ref[2]) / 2, (ref[1] + ref[3]) / 2)
        self._coordinate(stream, x, learned=False)
        self._coordinate(stream, y, learned=False)
        if len(ref) == 4:
            size = (ref[2] - ref[0], ref[3] - ref[1])
            stream.add(self._tokens.size_id, kind=TokenKind.SIZE, value=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """R rows of T positions; arrays are (R, T) but for values (R, T, 2). Unused positions are a group of their own.

    tokens, kinds, values   as in Stream: what stands at each position
    position                in its own sequence
    group, segment          segment 0 of a group is its prefix
    visible                 positions of its own sequence that each sees
    target                  token that each position is to predict, or -1
    value_kind              TokenKind.COORD or SIZE where it is to predict target_value (R, T, 2), else 0
    weight                  of each prediction: a segment of n predictions weighs sqrt(n) in all
    """

    tokens: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    position: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]
    visible: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    value_kind: npt.NDArray[np.int64]
    target_value: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


class RowBuilder:
    """Fills rows from left to right; `room` says how much of the current one is left."""

    def __init__(self, rows: int, length: int = ROW) -> None:
        self._length, self._row, self._at = length, 0, 0
        self._group, self._segment, self._prefix = 0, 0, 0

        def zeros(*shape: int) -> npt.NDArray[np.int64]:
            return np.zeros((rows, length, *shape), np.int64)

        self._rows = Rows(
            tokens=zeros(),
            kinds=zeros(),
            values=zeros(2).astype(np.float32),
            position=zeros(),
            group=zeros() - 1,
            segment=zeros(),
            visible=zeros() + 1,
            target=zeros() - 1,
            value_kind=zeros(),
            target_value=zeros(2).astype(np.float32),
            weight=zeros().astype(np.float32),
        )

    @property
    def room(self) -> int:
        return self._length - self._at

    @property
    def row(self) -> int:
        return self._row

    def next_row(self) -> None:
        self._row, self._at, self._group, self._segment, self._prefix = self._row + 1, 0, 0, 0, 0

    def begin(self, prefix: Stream) -> None:
        """Start a group."""
        self._group, self._segment, self._prefix = self._group + 1, 0, 0
        self._put(prefix)
        self._prefix = len(prefix)

    def segment(self, body: Stream) -> None:
        """Add a segment to the group."""
        self._segment += 1
        self._put(body)

    def finish(self) -> Rows:
        return self._rows

    def _put(self, stream: Stream) -> None:
        count, rows = len(stream), self._rows
        assert count <= self.room
        here = (self._row, slice(self._at, self._at + count))
        position = self._prefix + np.arange(count)
        rows.tokens[here], rows.kinds[here], rows.values[here] = stream.tokens, stream.kinds, stream.values
        rows.position[here], rows.group[here], rows.segment[here] = position, self._group, self._segment
        rows.visible[here] = position + 1
        for start, end in stream.blocks:
            rows.visible[self._row, self._at + start : self._at + end] = end
        learned = np.flatnonzero(stream.learned)
        if len(learned):
            assert learned[0] > 0  # what predicts it must be of the same segment
            before = (self._row, self._at + learned - 1)
            kinds = np.array(stream.kinds)[learned]
            rows.target[before] = np.array(stream.tokens)[learned]
            rows.value_kind[before] = kinds
            rows.target_value[before] = np.array(stream.values, np.float32)[learned]
            rows.weight[before] = 1 / math.sqrt(len(learned))
        self._at += count
