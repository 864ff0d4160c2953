"""Megabytes put together without keeping other threads waiting.

An object of bytes is allocated and filled in one go, in which no other thread of Python runs: of ten megabytes that
are new to the process, ten milliseconds and more. So large ones lie in a map of their own, filled slice by slice.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from itertools import accumulate
from typing import TypeAlias

SLICE = 1 << 18  # bytes


class LargeBytes(mmap.mmap):
    """A map filled here, which nobody else writes to or closes. As a file it has one position, hence one reader."""


Bytes: TypeAlias = "bytes | LargeBytes"
"""Both are buffers, can be sliced to bytes, and searched by regular expressions."""


def joined(parts: Iterable[bytes | bytearray | memoryview]) -> Bytes:
    """The parts one after the other; nobody may write to it. Raises MemoryError."""
    views = [memoryview(part) for part in parts]
    ends = list(accumulate(map(len, views)))
    if not ends or ends[-1] <= SLICE:
        return b"".join(views)
    try:
        # Private memory: a third quicker to fill than shared, and a thousand maps need not count as so many.
        whole = LargeBytes(-1, ends[-1], flags=mmap.MAP_PRIVATE)
    except OSError as error:
        raise MemoryError from error
    for view, end in zip(views, ends, strict=True):
        first = end - len(view)
        for start in range(0, len(view), SLICE):
            piece = view[start : start + SLICE]
            whole[first + start : first + start + len(piece)] = piece
    return whole
