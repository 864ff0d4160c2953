"""Headers of picture files: formats by their bytes, sizes before decoding, and what hostile files cost."""

from __future__ import annotations

import io
import mmap
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdinfer import large_bytes
from mdinfer.errors import ImageError
from mdinfer.image import load_rgb
from mdinfer.image_file import MAX_SCANS, has_known_format, inspect_file
from mdinfer.large_bytes import Bytes, joined

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(name: str, picture: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def load(data: Bytes) -> Image.Image:
    return load_rgb(data, exif=True, max_pixels=50_000_000)


def outcome(data: Bytes) -> Image.Image | str:
    """The picture, or the message of the ImageError; any other exception is a failure."""
    try:
        return load(data)
    except ImageError as error:
        return str(error)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def png_of_size(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp_of_size(width: int, height: int, *, compression: int = 0) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + bytes(8) + struct.pack("<I", 54 + 1024) + info + bytes(1024) + b"\0\0" * 8 + b"\0\1"


def gif_of_size(width: int, height: int, frame_width: int = 1, frame_height: int = 1) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    control = b"!\xf9\x04\x08\0\0\0\0"  # asks that the frame be cleared afterwards
    return screen + control + b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02D\x01\0;"


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def webp_of_size(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + size
    return b"RIFF" + struct.pack("<I", 9999) + b"WEBP" + extended + encoded("WEBP", lossless=True)[12:]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_format_and_size_are_read_from_the_bytes(name: str) -> None:
    data = encoded(name)
    file = inspect_file(data)
    assert (file.format, file.width, file.height, file.orientation) == (name, 80, 60, 1)
    assert has_known_format(data[:16])
    assert load(data).size == (80, 60)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_large_files_are_read_out_of_a_map(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of megabytes are: the same pixels, the same refusals."""
    data = encoded(name)
    expected = np.asarray(load(data))
    monkeypatch.setattr(large_bytes, "SLICE", 100)
    whole = joined([data[:50], memoryview(data)[50:]])
    assert isinstance(whole, mmap.mmap)
    if name in ("JPEG", "PNG"):
        assert isinstance(inspect_file(whole).data, mmap.mmap)
    assert np.array_equal(np.asarray(load(whole)), expected)
    for end in range(101, len(data), max(1, len(data) // 50)):
        cut, read = outcome(data[:end]), outcome(joined([data[:end]]))
        assert cut == read if isinstance(cut, str) else not isinstance(read, str)


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": b"Exif\0\0II*\0"}], ids=["VP8L", "VP8", "VP8X"])
def test_each_kind_of_webp(options: dict[str, Any]) -> None:
    file = inspect_file(encoded("WEBP", **options))
    assert (file.width, file.height) == (80, 60)


@pytest.mark.parametrize("name", ["TIFF", "PPM", "ICO", "PDF", "TGA", "PCX", "JPEG2000", "AVIF"])
def test_other_formats_of_pillow_are_refused(name: str) -> None:
    data = encoded(name)
    with pytest.raises(ImageError, match="JPEG, PNG, WebP, GIF and BMP"):
        load(data)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<svg/>", b"<html>", b"8BPS\0\1", b"SIMPLE  =", b"%!PS", b"RIFF\0\0\0\0AVI LIST"], ids=repr
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="send one of these"):
        load(data)


@pytest.mark.parametrize(
    ("make", "width", "height"),
    [
        (png_of_size, 50_000, 50_000),
        (png_of_size, 13_370, 13_370),
        (png_of_size, 1, 60_000_000),
        (png_of_size, 1, 49_000_000),
        (png_of_size, 0, 5),
        (bmp_of_size, 50_000, 50_000),
        (bmp_of_size, 50_000, -50_000),
        (gif_of_size, 50_000, 50_000),
        (lambda width, height: gif_of_size(1, 1, width, height), 50_000, 50_000),
        (jpeg_of_size, 65_500, 65_500),
        (webp_of_size, 16_383, 16_383),
        (webp_of_size, 1 << 24, 1 << 24),
    ],
)
def test_oversize_is_told_from_the_header(make: Callable[[int, int], bytes], width: int, height: int) -> None:
    data = make(width, height)
    started = time.perf_counter()
    with pytest.raises(ImageError, match=f"{width} x {abs(height)}"):
        load(data)
    assert time.perf_counter() - started < 0.25


def hostile() -> dict[str, bytes]:
    """Files whose metadata would cost a careless reader seconds or gigabytes; each by its name."""
    png, jpeg, gif = encoded("PNG"), encoded("JPEG"), encoded("GIF")
    squeezed = zlib.compress(bytes(100_000_000), 9)
    wide_ifd = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000)
    wide_ifd += b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(5000))
    table = b"\0" + bytes(range(1, 65))
    return {
        "png-zTXt": png[:33] + chunk(b"zTXt", b"a\0\0" + squeezed) + png[33:],
        "png-iTXt": png[:33] + chunk(b"iTXt", b"a\0\1\0\0\0" + squeezed) + png[33:],
        "png-iCCP": png[:33] + chunk(b"iCCP", b"a\0\0" + squeezed) + png[33:],
        "png-tEXt": png[:33] + chunk(b"tEXt", b"a\0" + bytes(20_000_000)) + png[33:],
        "png-eXIf": png[:33] + chunk(b"eXIf", wide_ifd) + png[33:],
        "png-chunks": png[:33] + chunk(b"teSt", b"") * 500_000 + png[33:],
        "png-late-chunks": png[:-12] + chunk(b"teSt", b"") * 500_000 + png[-12:],
        "png-idats": png[:33] + chunk(b"IDAT", b"") * 500_000 + png[33:],
        "jpeg-exif": jpeg[:2] + segment(0xE1, b"Exif\0\0" + wide_ifd[:65_000]) + jpeg[2:],
        "jpeg-exifs": jpeg[:2] + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 300 + jpeg[2:],
        "jpeg-segments": jpeg[:2] + segment(0xE1, b"") * 1_000_000 + jpeg[2:],
        "jpeg-tables": jpeg[:2] + segment(0xDB, table * 1000) * 200 + jpeg[2:],
        "jpeg-fill": jpeg[:2] + b"\xff" * 10_000_000 + jpeg[2:],
        "jpeg-junk": jpeg[:2] + b"\xff\0" * 5_000_000 + jpeg[2:],
        "gif-comment": gif[:781] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0" + gif[781:],
        "gif-junk": gif[:781] + bytes(5_000_000) + gif[781:],
        "webp-chunks": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x4f\0\0\x3b\0\0" + b"JUNK\0\0\0\0" * 1_000_000,
        "bmp-rle": bmp_of_size(7000, 7000, compression=1),
    }


def test_hostile_metadata_is_cheap() -> None:
    slow = {}
    for name, data in hostile().items():
        started = time.perf_counter()
        result = outcome(data)
        slow[name] = time.perf_counter() - started
        if isinstance(result, str):
            assert "0x" not in result
        else:
            expected = load(encoded(name.split("-")[0].upper()))
            assert np.array_equal(np.asarray(result), np.asarray(expected)), name
    assert max(slow.values()) < 2, slow


def test_metadata_never_reaches_the_decoder() -> None:
    marker = b"some metadata"
    exif = b"Exif\0\0" + marker
    jpeg = inspect_file(encoded("JPEG", exif=exif, icc_profile=marker, comment=marker, xmp=marker))
    png = inspect_file(encoded("PNG", exif=exif, icc_profile=marker, transparency=(1, 2, 3)))
    for file in (jpeg, png):
        assert marker not in file.data
        assert b"Exif" not in file.data
        assert np.asarray(load(file.data)).shape == (60, 80, 3)
    assert b"JFIF" in jpeg.data
    assert b"tRNS" not in png.data


def progressive(scans: int) -> bytes:
    data = encoded("JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data[data.rindex(b"\xff\xda") : end]
    return data[:end] + last * (scans - data.count(b"\xff\xda")) + data[end:]


def test_scans_of_a_jpeg_are_counted() -> None:
    assert load(progressive(MAX_SCANS)).size == (80, 60)
    with pytest.raises(ImageError, match="scans"):
        load(progressive(MAX_SCANS + 1))


def test_scans_cannot_hide_behind_a_false_end() -> None:
    data = progressive(MAX_SCANS + 1)
    scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    with pytest.raises(ImageError, match="scans"):
        load(data[:scan] + segment(0xFE, b"\xff\xd9") + data[scan:])


def test_what_follows_the_picture_is_no_matter() -> None:
    expected = np.asarray(load(encoded("JPEG", progressive=True)))
    trailer = b"\xff\xda\0\x02" * 500  # a film behind the still, as some phones write it
    assert np.array_equal(np.asarray(load(encoded("JPEG", progressive=True) + trailer)), expected)
    assert np.array_equal(np.asarray(load(encoded("PNG") + trailer)), np.asarray(PICTURE))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_files_cut_short_are_refused(name: str) -> None:
    data = encoded(name)
    for share in (0.01, 0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            load(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "progressive"])
def test_damaged_files_are_read_or_refused(name: str) -> None:
    small = PICTURE.resize((24, 18))
    data = encoded("JPEG", small, progressive=True) if name == "progressive" else encoded(name, small)
    dice = random.Random(name)
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(dice.randint(1, 8)):
            bad[dice.randrange(min(len(bad), dice.choice((40, 400, len(bad)))))] = dice.choice(
                (0, 1, 255, dice.randrange(256))
            )
        if dice.random() < 0.3:
            del bad[dice.randrange(len(bad)) :]
        result = outcome(bytes(bad))
        if isinstance(result, str):
            assert "0x" not in result
            assert "BytesIO" not in result
        else:
            assert result.mode == "RGB"
