"""Base64 `data:` URLs to bytes: the only kind of URL a picture may come by.

Owns the URL's syntax. What the bytes are is `image_file.py`'s business: the media type is read by nobody.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mdinfer.errors import ImageError
from mdinfer.large_bytes import Bytes, joined

_REMEDY = "send a base64 data: URL, such as data:image/jpeg;base64,..."
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):")
_BASE64_LABEL = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_MAX_LABEL = 1024
_SPACE = b" \t\n\v\f\r"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_STANDARD = bytes.maketrans(b"-_", b"+/")
_CHUNK = 1 << 20  # characters percent-decoded at a time, which bounds the temporary arrays
_PIECE = 1 << 15  # characters decoded at a time: each holds the interpreter, for a tenth of a millisecond

_HEX = np.full(256, 255, np.uint8)
_HEX[list(b"0123456789abcdef")] = range(16)
_HEX[list(b"ABCDEF")] = range(10, 16)


@dataclass(frozen=True, slots=True, repr=False)
class DataUrl:
    """A long data URL in pieces: `head`, up to the payload at least, and the rest in ASCII, not percent-encoded."""

    head: str
    rest: tuple[memoryview, ...]

    def __len__(self) -> int:
        return len(self.head) + sum(map(len, self.rest))

    def __str__(self) -> str:
        return self.head + b"".join(self.rest).decode("ascii")

    def __repr__(self) -> str:
        """For messages: as text, which it is to whoever sent it, and without the payload."""
        return repr(f"{self.head}...")


def decode_data_url(url: str | DataUrl, *, param: str = "image_url") -> Bytes:
    """The bytes that a base64 data URL (RFC 2397) holds; linear in its length.

    Accepted: any media type and parameters, any case of `data` and `base64`, missing padding, whitespace
    anywhere, percent-encoding, and the url-safe alphabet, also mixed with the standard one (no character has
    two meanings). Raises ImageError, which names `param` and never quotes the payload, for everything else:
    another scheme, no scheme, a URL that is not base64, a foreign character, an impossible length, nothing.
    """
    rest: tuple[memoryview, ...] = ()
    if isinstance(url, DataUrl):
        if "%" in url.head:
            return decode_data_url(str(url), param=param)
        rest, url = url.rest, url.head
    if not isinstance(url, str):
        raise ImageError(f"the image URL must be a string, found {type(url).__name__}: {_REMEDY}", param=param)
    start = len(url) - len(url.lstrip()) if url[:1].isspace() else 0
    scheme = _SCHEME.match(url, start)
    if scheme is None:
        raise ImageError(f"the image URL has no scheme: {_REMEDY}", param=param)
    if scheme[1].lower() != "data":
        raise ImageError(f"image URLs of scheme {scheme[1]!r} are not fetched: {_REMEDY}", param=param)
    comma = url.find(",", scheme.end(), scheme.end() + _MAX_LABEL)
    if comma < 0 or _BASE64_LABEL.search(url, scheme.end(), comma) is None:
        raise ImageError(f'the data: URL has no ";base64," before its payload: {_REMEDY}', param=param)
    try:
        if "%" in url:
            payload = _decode_percent(url[comma + 1 :].encode("ascii"))
            return _decode_base64(payload[i : i + _PIECE] for i in range(0, len(payload), _PIECE))
        head = (url[i : i + _PIECE].encode("ascii") for i in range(comma + 1, len(url), _PIECE))
        return _decode_base64(chain(head, _short(rest)))
    except ValueError as error:
        reason = "a character outside ASCII" if isinstance(error, UnicodeError) else str(error)
        raise ImageError(f"the payload of the data: URL is not base64: it has {reason}", param=param) from None


def _short(views: Iterable[memoryview]) -> Iterator[bytes]:
    return (bytes(view[i : i + _PIECE]) for view in views for i in range(0, len(view), _PIECE))


def _decode_base64(pieces: Iterable[bytes]) -> Bytes:
    """Raises ValueError, its text in our own words, where `base64.b64decode` would drop junk silently."""
    parts, rest, count, padding = [], b"", 0, 0
    for piece in pieces:
        others = piece.translate(None, delete=_ALPHABET)
        padded = piece.translate(_STANDARD, delete=_SPACE) if others else piece
        digits = padded.rstrip(b"=")
        if digits and (padding or (others and digits.translate(None, delete=_ALPHABET))):
            raise ValueError("a character outside the base64 alphabet")
        padding += len(padded) - len(digits)
        count += len(digits)
        digits = rest + digits
        whole = len(digits) // 4 * 4
        parts.append(base64.b64decode(digits[:whole]))
        rest = digits[whole:]
    if not count:
        raise ValueError("no data")
    if padding > 2:
        raise ValueError("more than two padding characters")
    if len(rest) == 1:
        raise ValueError(f"an impossible length of {count} digits: it was cut short")
    parts.append(base64.b64decode(rest + b"=" * (-len(rest) % 4)))
    return joined(parts)


def _decode_percent(payload: bytes) -> bytes:
    """%XX to bytes, once. Raises ValueError on a `%` without two hexadecimal digits."""
    parts, start = [], 0
    while start < len(payload):
        end = start + _CHUNK
        if end < len(payload) and (cut := payload.rfind(b"%", end - 2, end)) >= 0:
            end = cut  # an escape that the border would split goes to the next chunk
        chars = np.frombuffer(payload[start:end], np.uint8).copy()
        escapes = np.flatnonzero(chars == ord("%"))
        if escapes.size and escapes[-1] + 2 >= chars.size:
            raise ValueError("an incomplete percent escape")
        high, low = _HEX[chars[escapes + 1]], _HEX[chars[escapes + 2]]
        if ((high | low) > 15).any():
            raise ValueError("a percent sign without two hexadecimal digits")
        chars[escapes] = high << 4 | low
        keep = np.ones(chars.size, bool)
        keep[escapes + 1] = keep[escapes + 2] = False
        parts.append(chars[keep].tobytes())
        start = end
    return b"".join(parts)
