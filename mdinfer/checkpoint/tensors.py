"""One tensor as a file holds it, blocks of tensors, and the buffer that blocks are read into.

A block is a run of rows: an index into all leading dimensions but the last of them, which is a slice.
Weights are only ever moved in blocks, so that no file is mapped or held as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Block = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file: `name` as the file spells it, `offset` the place of its bytes in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Reader(Protocol):
    """An open file of tensors, for several threads at a time."""

    def read(self, stored: Stored, block: Block, buffer: Buffer) -> Tensor:
        """A block of a tensor, in `buffer`. Raises CheckpointError."""

    def close(self) -> None: ...


class Buffer:
    """Memory that blocks are read into, one after the other; it grows to the largest block asked of it.

    `pinned` makes copies to a CUDA device faster; such memory is better asked for at once, as `size` bytes.
    """

    def __init__(self, *, pinned: bool = False, size: int = 0) -> None:
        self._pinned = pinned
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def hold(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor over the buffer's start, its values undefined; it overwrites what was held before."""
        size = math.prod(shape) * dtype.itemsize
        if size > self._bytes.numel():
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._bytes[:size].view(dtype).view(tuple(shape))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU operations on the calling thread for the duration.

    Moving weights is bound by memory, and a block is short work: a team of threads meets after each, and
    waits for the one that a busy machine or a CPU quota holds up. On 2 shared cores with 4 busy processes,
    0.93 G bf16 weights took 14 s with two threads and 1.3 s with one; quantising them 37 s and 2.1 s.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def blocks(shape: Sequence[int], limit: int) -> Iterator[Block]:
    """Cover a shape with blocks of at most `limit` elements each (or one row, if a row is longer)."""
    if len(shape) > 2:
        for i in range(shape[0]):
            for rest in blocks(shape[1:], limit):
                yield (i, *rest)
        return
    rows = max(1, limit // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


def extent(shape: Sequence[int], block: Block) -> tuple[int, tuple[int, ...]]:
    """First element of a block in row-major order, and the block's shape."""
    *outer, rows = block
    assert isinstance(rows, slice)
    place = 0
    for size, i in zip(shape, outer, strict=False):
        assert isinstance(i, int)
        place = place * size + i
    inner = tuple(shape[len(block) :])
    place = place * shape[len(outer)] + rows.start
    return place * math.prod(inner), (rows.stop - rows.start, *inner)
