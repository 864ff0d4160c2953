"""Long base64 cut out of JSON before it is decoded, and put back after: pictures as data URLs in pieces.

To make a string of megabytes takes milliseconds in which no other thread runs, and so would all that a decoder, a
check, and a picture's way to the engine make of it. In pieces it is copied by nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdinfer.data_url import DataUrl
from mdinfer.large_bytes import Bytes, joined

LEAST = 1 << 16  # characters; shorter runs stay
_LABEL = b";base64,"
_MOST = 1000  # labels that are looked at; what follows more of them stays
_PICTURES = ("url", "image_url")  # fields that hold them


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`data` is JSON with the mark and a number in place of each of the `runs`."""

    data: Bytes
    mark: str
    runs: Sequence[tuple[memoryview, ...]]

    def place(self, at: int) -> int:
        """Where in the whole that is which is `at` bytes from the beginning of `data`."""
        end = missing = 0
        for number, run in enumerate(self.runs):
            mark = f"{self.mark}{number}".encode()
            end = self.data.find(mark, end) + len(mark)
            if end > at:
                break
            missing += sum(map(len, run)) - len(mark)
        return at + missing

    def put_back(self, value: Any) -> Any:
        """What `data` was decoded to, changed in place to what the whole stands for.

        In fields of pictures runs come back as `DataUrl`, elsewhere as what they were.
        """
        if not self.runs:
            return value
        value = self._whole(value)
        left = [value]
        while left:
            node = left.pop()
            if isinstance(node, list):
                node[:] = map(self._whole, node)
                left += node
            elif isinstance(node, dict):
                items = [(self._whole(key), self._whole(each, key)) for key, each in node.items()]
                node.clear()
                node.update(items)
                left += node.values()
        return value

    def _whole(self, text: Any, field: object = None) -> Any:
        if not isinstance(text, str) or self.mark not in text:
            return text
        head, _, number = text.partition(self.mark)
        url = DataUrl(head, self.runs[int(number)])
        return url if field in _PICTURES else str(url)


def cut(pieces: Iterable[bytes | bytearray]) -> Cut:
    """Cut the long runs of base64 out of JSON that comes in pieces.

    A run is what follows a label up to the end of its string, if that is plain: printable ASCII without escapes. JSON
    has no label outside of strings, so that the rest is JSON if the whole is. A label that two pieces share is not
    found, and its run stays in.
    """
    mark = secrets.token_hex(16)
    kept: list[bytes | memoryview] = []
    runs: list[tuple[memoryview, ...]] = []
    run: list[memoryview] | None = None
    labels = 0
    for piece in pieces:
        view, start = memoryview(piece), 0
        while True:
            if run is None:
                label = piece.find(_LABEL, start) if labels < _MOST else -1
                if label < 0:
                    kept.append(view[start:])
                    break
                labels, run = labels + 1, []
                kept.append(view[start : label + len(_LABEL)])
                start = label + len(_LABEL)
            end = piece.find(b'"', start)
            run.append(view[start : end if end >= 0 else len(piece)])
            if end < 0:
                break
            if sum(map(len, run)) >= LEAST and all(map(_plain, run)):
                kept.append(f"{mark}{len(runs)}".encode())
                runs.append(tuple(run))
            else:
                kept += run
            run, start = None, end
    return Cut(data=joined([*kept, *(run or ())]), mark=mark, runs=runs)


def _plain(run: memoryview) -> bool:
    if not run:
        return True
    characters = np.frombuffer(run, np.uint8)
    escaped = bool((characters == ord("\\")).any() or (characters == ord("%")).any())
    return not escaped and int(characters.min()) >= 0x20 and int(characters.max()) < 0x7F
