"""Picture files before they are decoded: which format, how large, which way up, and nothing else of them.

Owns the headers of JPEG, PNG, WebP, GIF and BMP. Pillow gets the picture's own parts only: text, ICC, EXIF,
XMP and preview blocks are cut out of JPEG and PNG, so that no metadata, however large or broken, costs
anything. Every walk over blocks is bounded by a count, here and, through what is cut, in Pillow.
Does not decode pixels and does not judge sizes: that is `image.py`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from mdinfer.errors import ImageError
from mdinfer.large_bytes import Bytes, joined

MAX_SEGMENTS = 10_000  # JPEG segments before the first scan; a depth map in XMP, the worst seen, has hundreds
MAX_TABLES = 64  # JPEG segments that matter for decoding; usual are about ten
MAX_SCANS = 100  # JPEG scans, each a pass over all pixels; encoders write about ten
MAX_CHUNKS = 100_000  # PNG and WebP chunks, GIF blocks before the first frame
MAX_RLE_PIXELS = 1 << 22  # run-length coded BMP: Pillow decodes it in Python, about 1 us a pixel

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in coded data FF00 is stuffing, D0..D7 are restarts
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_BARE_MARKERS = (0x01, *range(0xD0, 0xD9))
_COLOUR_SEGMENTS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # the only metadata that libjpeg itself reads
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # not tRNS: alpha is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """One picture file: `data` is what Pillow's plugin of that `format` decodes.

    width and height are in pixels as stored, before `orientation` (EXIF's 1..8, 1 without) is applied.
    """

    format: str
    width: int
    height: int
    orientation: int
    data: Bytes


class _RefusedError(Exception):
    """A reason in our own words, to follow "the picture"."""


def has_known_format(head: bytes) -> bool:
    """Whether a file that starts with these bytes (16 are enough) is one of the formats read here."""
    return _format(head) is not None


def inspect_file(data: Bytes, *, param: str = "image") -> PictureFile:
    """Tell the format from the bytes and read the header. Raises ImageError if either cannot be done."""
    name = _format(data[:16])
    if name is None:
        found = "is empty" if not data else "is in none of the formats JPEG, PNG, WebP, GIF and BMP"
        raise ImageError(f"the picture {found}: send one of these", param=param)
    try:
        return {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "BMP": _bmp}[name](data)
    except _RefusedError as error:
        raise ImageError(f"the picture {error}: save it anew as PNG or JPEG", param=param) from None
    except (struct.error, IndexError):
        raise ImageError(f"the {name} picture is damaged or cut short: send the whole file", param=param) from None


def _format(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if head.startswith(b"BM") else None


def _jpeg(data: Bytes) -> PictureFile:
    """Walk the segments up to the first scan; keep tables, frame, and the two that tell the colour space."""
    kept = [b"\xff\xd8"]
    width = height = components = frame = 0
    orientation, pos = 1, 2
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, pos)
        if found is None:
            raise IndexError
        start, code = found.start(), data[found.start() + 1]
        pos = start + 2
        if code in _BARE_MARKERS:
            continue
        pos += _u16(data, pos)
        if code == 0xDA:
            if frame not in _SEQUENTIAL or data[start + 4] < components:
                _check_scans(data, pos)
            return PictureFile(
                format="JPEG",
                width=width,
                height=height,
                orientation=orientation,
                data=joined((*kept, memoryview(data)[start:])),
            )
        name = data[start + 4 : start + 10]
        if code in _START_OF_FRAME:
            frame = code
            height, width, components = struct.unpack_from(">HHB", data, start + 5)
        elif code == 0xE1 and orientation == 1 and name == b"Exif\0\0":
            orientation = _orientation(data[start + 4 : pos])
        colour = _COLOUR_SEGMENTS.get(code)
        if name.startswith(colour) if colour else not (code == 0xFE or 0xE0 <= code <= 0xEF):
            kept.append(data[start:pos])
            if len(kept) > MAX_TABLES:
                raise _RefusedError(f"has more than {MAX_TABLES} tables")
    raise _RefusedError(f"has more than {MAX_SEGMENTS} segments before its first scan")


def _check_scans(data: Bytes, pos: int) -> None:
    """Count the scans of a JPEG that takes several: a scan of a few bytes costs a pass over all pixels."""
    scans = 1
    for _ in range(MAX_SEGMENTS):
        found = _SCAN_MARKER.search(data, pos)
        if found is None:
            return
        pos, code = found.end(), data[found.end() - 1]
        if code == 0xD9:
            return
        scans += code == 0xDA
        if scans > MAX_SCANS:
            raise _RefusedError(f"has more than {MAX_SCANS} scans")
        if code not in _BARE_MARKERS:
            pos += _u16(data, pos)
    raise _RefusedError(f"has more than {MAX_SEGMENTS} segments between its scans")


def _png(data: Bytes) -> PictureFile:
    """Keep the chunks that hold the picture (of an animated one the still); their checksums are Pillow's."""
    width, height = struct.unpack_from(">II", data, 16)
    view, kept = memoryview(data), [memoryview(data)[:8]]
    orientation, pos = 1, 8
    for _ in range(MAX_CHUNKS):
        if pos + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, pos)
        end = pos + 12 + length
        if name in _PNG_KEPT:
            kept.append(view[pos:end])
        elif name == b"eXIf":
            orientation = _orientation(data[pos + 8 : min(end - 4, pos + (1 << 16))])
        pos = end
        if name == b"IEND":
            break
    else:
        raise _RefusedError(f"has more than {MAX_CHUNKS} chunks")
    return PictureFile(format="PNG", width=width, height=height, orientation=orientation, data=joined(kept))


def _webp(data: Bytes) -> PictureFile:
    kind, orientation = data[12:16], 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        if data[20] & 8:  # says that it has EXIF
            orientation = _webp_orientation(data)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise IndexError
    return PictureFile(format="WEBP", width=width, height=height, orientation=orientation, data=data)


def _webp_orientation(data: Bytes) -> int:
    pos = 12
    for _ in range(MAX_CHUNKS):
        if pos + 8 > len(data):
            return 1
        name, length = struct.unpack_from("<4sI", data, pos)
        if name == b"EXIF":
            return _orientation(data[pos + 8 : pos + 8 + min(length, 1 << 16)])
        pos += 8 + length + (length & 1)
    raise _RefusedError(f"has more than {MAX_CHUNKS} chunks")


def _gif(data: Bytes) -> PictureFile:
    """The screen, or the first frame where that is larger; extensions before it are skipped."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    pos = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_CHUNKS):
        code = data[pos]
        if in_extension:
            pos += 1 + code
            in_extension = code != 0
        elif code == 0x21:
            pos += 2
            in_extension = True
        elif code == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, pos + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            return PictureFile(format="GIF", width=width, height=height, orientation=1, data=data)
        elif code == 0x3B:
            raise IndexError
        else:
            pos += 1  # stray bytes between blocks, which Pillow skips too
    raise _RefusedError(f"has more than {MAX_CHUNKS} blocks before its first frame")


def _bmp(data: Bytes) -> PictureFile:
    compression = 0
    if _u32(data, 14) == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = (abs(side) for side in struct.unpack_from("<ii", data, 18))
        compression = _u32(data, 30)
    if compression in (1, 2) and width * height > MAX_RLE_PIXELS:
        raise _RefusedError(f"is a run-length coded BMP of more than {MAX_RLE_PIXELS} pixels")
    return PictureFile(format="BMP", width=width, height=height, orientation=1, data=data)


def _orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block's first directory; 1 if it is absent, absurd or out of reach."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, 1000), 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return int(value) if kind in (3, 4) and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _u16(data: Bytes, pos: int) -> int:
    return int(struct.unpack_from(">H", data, pos)[0])


def _u32(data: Bytes, pos: int) -> int:
    return int(struct.unpack_from("<I", data, pos)[0])
