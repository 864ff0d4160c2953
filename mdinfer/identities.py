"""What makes two positions the same for the prefix cache: one int64 each, exact, never a hash.

Bits 60 and up say what it is; below stand
    text        the token
    coordinate  the bits of its float32
    size        the number that its pair of float32 was given
    picture     the number that its digest (SHA-256 of what the vision tower depends on) was given, then 20 bits of
                offset in the image's block; BOS is part of the block where it joins it

Numbers are given in order and never again, in a table that forgets what was used longest ago: a picture or a size
that is forgotten gets a new number and with it a miss, never another one's hit.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq

import numpy as np

from mdinfer.kernels import TokenKind
from mdinfer.prompts import Prompt
from mdinfer.sequence import SampledToken

_KIND_SHIFT = 60
_OFFSET_BITS = 20
_CAPACITY = 1 << 14
_FLOAT, _FLOATS, _BITS = struct.Struct("<f"), struct.Struct("<2f"), struct.Struct("<I")


class Identities:
    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._given = 0

    def of_prompt(self, prompt: Prompt, digests: Seq[bytes]) -> array[int]:
        """One per position; `digests` of the prompt's pictures, in order."""
        ids = prompt.tokens.copy()
        for position in (prompt.kinds == TokenKind.COORD).nonzero()[0].tolist():
            ids[position] = self._coordinate(prompt.values[position, 0].item())
        for position in (prompt.kinds == TokenKind.SIZE).nonzero()[0].tolist():
            width, height = prompt.values[position].tolist()
            ids[position] = self._size(width, height)
        for (start, end), digest in zip(prompt.blocks, digests, strict=True):
            assert end - start < 1 << _OFFSET_BITS
            first = TokenKind.IMAGE << _KIND_SHIFT | self._number(digest) << _OFFSET_BITS
            ids[start:end] = np.arange(first, first + end - start)
        found = array("q")
        found.frombytes(ids.tobytes())
        return found

    def of_token(self, token: SampledToken) -> int:
        """Of a sampled token, as a later prompt may hold it."""
        if token.kind == TokenKind.TEXT:
            return token.token
        if token.kind == TokenKind.COORD:
            return self._coordinate(token.value[0])
        return self._size(*token.value)

    def _coordinate(self, value: float) -> int:
        bits: int = _BITS.unpack(_FLOAT.pack(value))[0]
        return TokenKind.COORD << _KIND_SHIFT | bits

    def _size(self, width: float, height: float) -> int:
        return TokenKind.SIZE << _KIND_SHIFT | self._number(_FLOATS.pack(width, height))

    def _number(self, key: bytes) -> int:
        """Digests and sizes share one table: their keys differ in length."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._given
            self._given += 1
            if len(self._numbers) > self._capacity:
                self._numbers.popitem(last=False)
        else:
            self._numbers.move_to_end(key)
        return number
