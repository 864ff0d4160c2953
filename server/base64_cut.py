"""Long base64 cut out of JSON before it is decoded, and put back after: pictures as data URLs in pieces.

To make a string of megabytes takes milliseconds in which no other thread runs, and so would all that a decoder, a
check, and a picture's way to the engine make of it. In pieces it is copied by nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mdinfer.data_url import DataUrl
from mdinfer.large_bytes import Bytes, joined

LEAST = 1 << 16  # characters; shorter runs stay
_LABEL = b";base64,"
_MOST = 1000  # labels that are looked at: among more there is nothing long
_PICTURES = ("url", "image_url")  # fields that hold them


def cut(pieces: Iterable[bytes]) -> tuple[Bytes, Callable[[Any], Any]]:
    """JSON with a mark for each long run of base64, and what puts them back into the value that it decodes to.

    A run is what follows a label up to the end of its string, if that is plain: printable ASCII without escapes. JSON
    has no label outside of strings, so that the rest is JSON if the whole is. A label that two pieces share is not
    found, and its run stays in. In fields of pictures runs come back as `DataUrl`, elsewhere as what they were.
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
    return joined([*kept, *(run or ())]), lambda value: _put_back(value, mark, runs) if runs else value


def _plain(run: memoryview) -> bool:
    if not run:
        return True
    characters = np.frombuffer(run, np.uint8)
    escaped = bool((characters == ord("\\")).any() or (characters == ord("%")).any())
    return not escaped and int(characters.min()) >= 0x20 and int(characters.max()) < 0x7F


def _put_back(value: Any, mark: str, runs: list[tuple[memoryview, ...]]) -> Any:
    """`value`, changed in place."""

    def whole(text: Any, field: object = None) -> Any:
        if not isinstance(text, str) or mark not in text:
            return text
        head, _, number = text.partition(mark)
        url = DataUrl(head, runs[int(number)])
        return url if field in _PICTURES else str(url)

    value = whole(value)
    left = [value]
    while left:
        node = left.pop()
        if isinstance(node, list):
            node[:] = map(whole, node)
            left += node
        elif isinstance(node, dict):
            items = [(whole(key), whole(each, key)) for key, each in node.items()]
            node.clear()
            node.update(items)
            left += node.values()
    return value
