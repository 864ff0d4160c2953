"""Prompts as arrays: what stands at each position and how far each position sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdinfer.kernels import TokenKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """T positions.

    tokens    (T,) int64; 0 where an image stands
    kinds     (T,) int64, TokenKind
    values    (T, 2) float32: a coordinate in column 0, or a size's width and height
    visible   (T,) int32: how many positions, from the first, each one attends to
    images    first position of each image, in order
    blocks    (start, end) of the block of each image: its positions, and BOS where that joins them
    """

    tokens: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    visible: npt.NDArray[np.int32]
    images: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.tokens)


class PromptBuilder:
    """Collects a prompt from left to right; `image_positions` is how many rows a picture takes."""

    def __init__(self, bos_id: int, image_positions: int) -> None:
        self._image_positions = image_positions
        self._tokens: list[int] = [bos_id]
        self._kinds: list[int] = [TokenKind.TEXT]
        self._values: dict[int, tuple[float, float]] = {}
        self._blocks: list[tuple[int, int]] = []
        self._images: list[int] = []

    def text(self, ids: Iterable[int]) -> PromptBuilder:
        for token in ids:
            self._add(token, TokenKind.TEXT)
        return self

    def image(self) -> PromptBuilder:
        """A block that attends within itself in both directions; BOS joins it where it comes right after BOS."""
        start = len(self._tokens)
        self._images.append(start)
        self._tokens += [0] * self._image_positions
        self._kinds += [TokenKind.IMAGE] * self._image_positions
        self._blocks.append((0 if start == 1 else start, len(self._tokens)))
        return self

    def spatial_ref(self, ref: tuple[float, ...], coord_id: int, size_id: int) -> PromptBuilder:
        """A point (x, y) as two coordinates, or a box (x_min, y_min, x_max, y_max) as centre and size."""
        ref = tuple(float(value) for value in ref)
        if len(ref) == 2:
            centre, size = ref, None
        else:
            x_min, y_min, x_max, y_max = ref
            centre, size = ((x_min + x_max) / 2, (y_min + y_max) / 2), (x_max - x_min, y_max - y_min)
        for value in centre:
            self._add(coord_id, TokenKind.COORD, (value, 0.0))
        if size is not None:
            self._add(size_id, TokenKind.SIZE, size)
        return self

    def build(self) -> Prompt:
        count = len(self._tokens)
        values = np.zeros((count, 2), dtype=np.float32)
        for position, pair in self._values.items():
            values[position] = pair
        visible = np.arange(1, count + 1, dtype=np.int32)
        for start, end in self._blocks:
            visible[start:end] = end
        return Prompt(
            tokens=np.array(self._tokens, dtype=np.int64),
            kinds=np.array(self._kinds, dtype=np.int64),
            values=values,
            visible=visible,
            images=tuple(self._images),
            blocks=tuple(self._blocks),
        )

    def _add(self, token: int, kind: TokenKind, value: tuple[float, float] | None = None) -> None:
        if value is not None:
            self._values[len(self._tokens)] = value
        self._tokens.append(token)
        self._kinds.append(kind)
