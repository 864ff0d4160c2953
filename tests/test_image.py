"""Crops against the golden hashes, colour modes one by one, limits, and what may be handed in."""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdinfer.config import VisionConfig
from mdinfer.errors import ImageError
from mdinfer.image import (
    MAX_SIDE,
    Crops,
    ImageSource,
    image_tiling,
    load_rgb,
    prepare_image,
    select_tiling,
)

GOLDEN = Path(__file__).parent / "golden"
CROPS: dict[str, Any] = json.loads((GOLDEN / "crops.json").read_text())
TILING: dict[str, Any] = json.loads((GOLDEN / "tiling.json").read_text())
VISION = VisionConfig()
LIMIT = 50_000_000
Pixels = npt.NDArray[np.uint8]


def prepare(source: ImageSource, config: VisionConfig = VISION, *, exif: bool = True) -> Crops:
    return prepare_image(source, config, exif=exif, max_pixels=LIMIT)


def rgb(source: ImageSource, *, exif: bool = True) -> Pixels:
    picture = load_rgb(source, exif=exif, max_pixels=LIMIT)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_rgb(source, **{"exif": True, "max_pixels": LIMIT, **options})
    assert "0x" not in str(caught.value)
    return str(caught.value)


def check_golden(crops: Crops, row: dict[str, Any]) -> None:
    assert (crops.width, crops.height) == (row["width"], row["height"])
    assert crops.tiling == tuple(row["tiling_rows_cols"])
    rows, cols = crops.tiling
    assert [rows * 266 + 112, cols * 266 + 112] == row["resized_h_w"]
    assert crops.pixels.shape == (row["num_crops"], 378, 378, 3)
    assert crops.pixels.dtype == np.uint8
    assert crops.pixels.flags.c_contiguous
    assert [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops.pixels] == row["crop_sha256"]
    for crop, y, x, *colour in row["probe_pixels"]:
        assert crops.pixels[crop, y, x].tolist() == colour


@pytest.mark.parametrize("row", CROPS["images"], ids=lambda row: Path(row["file"]).name)
def test_golden_crops(row: dict[str, Any]) -> None:
    path = GOLDEN / row["file"]
    crops = prepare(path, exif=False)
    check_golden(crops, row)
    assert hashlib.sha256(rgb(path, exif=False).tobytes()).hexdigest() == row["rgb_sha256"]
    check_golden(prepare(path, exif=True), row.get("if_exif_applied", row))
    for index, file in row.get("raw_crops", {}).items():
        assert np.array_equal(crops.pixels[int(index)], rgb(GOLDEN / file))


@pytest.mark.parametrize("row", CROPS["images"], ids=lambda row: Path(row["file"]).name)
def test_a_path_its_bytes_a_pillow_picture_and_an_array_are_the_same_picture(row: dict[str, Any]) -> None:
    path = GOLDEN / row["file"]
    whole = prepare(path)
    with Image.open(path) as picture:  # loaded lazily, by us
        sources: list[ImageSource] = [str(path), path.read_bytes(), picture, rgb(path)]
        for source in sources:
            crops = prepare(source)
            assert crops.digest == whole.digest
            assert np.array_equal(crops.pixels, whole.pixels)


def test_golden_tilings() -> None:
    assert len(TILING["rows"]) > 100
    for height, width, rows, cols in TILING["rows"]:
        assert image_tiling(height, width, VISION) == (rows, cols), (height, width)
    for row in TILING["other_max_crops"]:
        height, width, max_crops, rows, cols = row
        assert image_tiling(height, width, replace(VISION, max_crops=max_crops)) == (rows, cols), row


@settings(deadline=None)
@given(st.integers(-200, 200_000), st.integers(-200, 200_000), st.integers(1, 64))
def test_tiles_are_bounded_whatever_the_aspect(height: int, width: int, max_crops: int) -> None:
    rows, cols = select_tiling(height, width, 266, max_crops)
    assert rows >= 1
    assert cols >= 1
    most = math.isqrt(max_crops * math.ceil(max(height, width, 1) / 266))
    assert rows * cols <= (max_crops if rows > 1 and cols > 1 else max(max_crops, most))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4096), (4096, 1), (52800, 44), (1, MAX_SIDE)])
def test_extreme_aspect_ratios_give_two_crops(width: int, height: int) -> None:
    crops = prepare(encoded(Image.new("RGB", (width, height), (9, 8, 7)), "PNG"))
    assert crops.tiling == (1, 1)
    assert crops.pixels.shape == (2, 378, 378, 3)
    assert (crops.pixels == [9, 8, 7]).all()


def test_tiles_are_cut_from_the_resized_picture_with_overlap() -> None:
    config = VisionConfig(crop_size=112, overlap_margin=2)  # window 56
    picture = Image.fromarray(noise(150, 260))
    crops = prepare(picture, config)
    rows, cols = crops.tiling
    assert (rows, cols) == image_tiling(150, 260, config)
    assert rows * cols > 4
    resized = np.asarray(picture.resize((cols * 56 + 56, rows * 56 + 56), Image.Resampling.LANCZOS))
    for i in range(rows):
        for j in range(cols):
            tile = resized[i * 56 : i * 56 + 112, j * 56 : j * 56 + 112]
            assert np.array_equal(crops.pixels[1 + i * cols + j], tile)


# Colour modes


GREY = noise(6, 5, 1)
COLOUR = noise(6, 5)
ALPHA = noise(6, 5, 1, seed=1)


def with_alpha(colour: Pixels, alpha: Pixels) -> Pixels:
    return np.dstack([colour, alpha])


def test_rgba_drops_alpha_instead_of_compositing() -> None:
    picture = Image.fromarray(with_alpha(COLOUR, ALPHA))
    for source in (picture, encoded(picture, "PNG"), encoded(picture, "WEBP", lossless=True, exact=True)):
        assert np.array_equal(rgb(source), COLOUR)


def test_grey_with_and_without_alpha() -> None:
    expected = np.dstack([GREY] * 3)
    plain, alpha = Image.fromarray(GREY), Image.fromarray(with_alpha(GREY, ALPHA))
    assert alpha.mode == "LA"
    for picture in (plain, alpha):
        assert np.array_equal(rgb(picture), expected)
        assert np.array_equal(rgb(encoded(picture, "PNG")), expected)
    assert np.array_equal(rgb(encoded(plain, "PNG", transparency=int(GREY[0, 0]))), expected)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255, 7])], ids=["opaque", "index", "alphas"])
def test_palettes_keep_the_colour_under_their_transparency(transparency: int | bytes | None) -> None:
    picture = Image.new("P", (2, 2))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata([0, 1, 2, 3])
    expected = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]]
    options = {} if transparency is None else {"transparency": transparency}
    file = encoded(picture, "PNG", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rgb(file).tolist() == expected
        with Image.open(io.BytesIO(file)) as opened:
            assert ("transparency" in opened.info) == (transparency is not None)
            assert rgb(opened).tolist() == expected
        assert rgb(encoded(picture, "GIF", **({} if transparency is None else {"transparency": 0}))).tolist() == (
            expected
        )


def test_palette_with_alpha_drops_it() -> None:
    picture = Image.new("PA", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([(0, 0), (1, 128)])
    assert rgb(picture).tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_bilevel_is_black_and_white() -> None:
    picture = Image.fromarray(np.array([[True, False]]))
    assert picture.mode == "1"
    for source in (picture, encoded(picture, "PNG"), encoded(picture, "BMP")):
        assert rgb(source).tolist() == [[[255] * 3, [0] * 3]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    expected = [[[v] * 3 for v in (0, 0, 1, 128, 255)]]
    picture = Image.fromarray(values)
    assert picture.mode == "I;16"
    assert rgb(picture).tolist() == expected
    assert rgb(encoded(picture, "PNG")).tolist() == expected
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    assert rgb(big_endian).tolist() == expected


def test_32_bit_modes_are_clipped() -> None:
    integers = Image.fromarray(np.array([[-5, 0, 255, 256, 70000]], np.int32))
    floats = Image.fromarray(np.array([[-0.5, 0, 255, 256, 1e9]], np.float32))
    assert (integers.mode, floats.mode) == ("I", "F")
    for picture in (integers, floats):
        assert rgb(picture).tolist() == [[[v] * 3 for v in (0, 0, 255, 255, 255)]]


def test_cmyk_is_converted() -> None:
    picture = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    assert (rgb(picture) == [255, 0, 0]).all()
    assert np.abs(rgb(encoded(picture, "JPEG", quality=100)).astype(int) - [255, 0, 0]).max() <= 2


def test_icc_profile_is_ignored() -> None:
    picture = Image.fromarray(COLOUR)
    assert np.array_equal(rgb(encoded(picture, "PNG", icc_profile=b"no profile at all")), COLOUR)


def test_every_jpeg_kind_decodes_as_pillow_does() -> None:
    picture = Image.fromarray(noise(8, 8)).resize((90, 70))
    kinds: list[dict[str, Any]] = [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"comment": "x"}]
    for options in kinds:
        file = encoded(picture, "JPEG", **options)
        assert np.array_equal(rgb(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))), options


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "MPO"])
def test_of_several_frames_the_first_is_taken(name: str) -> None:
    frames = [Image.new("RGB", (20, 10), (50 * i, 255 - 50 * i, 90)) for i in range(4)]
    kinds: dict[str, dict[str, Any]] = {"MPO": {"quality": 100}, "WEBP": {"lossless": True}}
    options = kinds.get(name, {})
    file = encoded(frames[0], name, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(file)) as opened:
        assert getattr(opened, "n_frames", 1) == 4
        assert np.array_equal(rgb(file), np.asarray(opened.convert("RGB")))


# Orientation

ARROW = np.zeros((2, 3, 3), np.uint8)
ARROW[0, 0], ARROW[0, 2] = (255, 0, 0), (0, 255, 0)


def oriented(name: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    picture = Image.fromarray(ARROW.repeat(16, 0).repeat(16, 1))
    return encoded(picture, name, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(name: str, orientation: int) -> None:
    upright = {
        1: ARROW,
        2: ARROW[:, ::-1],
        3: ARROW[::-1, ::-1],
        4: ARROW[::-1],
        5: ARROW.swapaxes(0, 1),
        6: np.rot90(ARROW, -1),
        7: np.rot90(ARROW, 2).swapaxes(0, 1),
        8: np.rot90(ARROW),
    }[orientation]
    kinds: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = kinds.get(name, {})
    file = oriented(name, orientation, **options)
    for source in (file, Image.open(io.BytesIO(file))):
        assert np.abs(rgb(source)[8::16, 8::16].astype(int) - upright).max() <= 3
        assert np.abs(rgb(source, exif=False)[8::16, 8::16].astype(int) - ARROW).max() <= 3


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
        b"Exif\0\0garbage",
    ],
    ids=["none", "empty", "header", "far", "overrun", "orientation99", "garbage"],
)
def test_a_broken_exif_block_costs_the_picture_nothing(exif: bytes) -> None:
    picture = Image.fromarray(COLOUR)
    file = encoded(picture, "PNG", exif=exif)
    assert np.array_equal(rgb(file), COLOUR)
    lazily = Image.open(io.BytesIO(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(rgb(lazily), COLOUR)


# What may be handed in


def test_arrays_need_not_be_contiguous() -> None:
    array = noise(20, 30)
    for view in (array[::2, ::-1], array.transpose(1, 0, 2), array[:, :, ::-1], np.asfortranarray(array)):
        assert np.array_equal(rgb(view), view)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), object),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}".replace(" ", ""),
)
def test_arrays_of_another_kind_are_refused(array: npt.NDArray[Any]) -> None:
    message = refusal(array, param="p")
    assert str(array.shape) in message
    assert str(array.dtype) in message
    assert "(height, width, 3)" in message


def test_a_map_of_the_callers_own_is_refused() -> None:
    """It has one position for all who read it, and changes as its file does."""
    with mmap.mmap(-1, 100) as source:
        assert "found mmap" in refusal(source)


def test_pictures_without_pixels_are_refused() -> None:
    assert "no pixels" in refusal(np.zeros((0, 4, 3), np.uint8))
    assert "no pixels" in refusal(np.zeros((4, 0, 3), np.uint8))
    assert "no pixels" in refusal(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("source", [None, 3, ["a.png"], {"url": "x"}, io.BytesIO(b"x")], ids=lambda s: type(s).__name__)
def test_anything_else_is_refused_by_its_type(source: object) -> None:
    assert type(source).__name__ in refusal(source)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret-name"
    assert "not found" in refusal(secret)
    assert "not found" in refusal(str(secret / "a.png"))
    assert "directory" in refusal(tmp_path)
    assert "cannot be read" in refusal("a\0b")
    assert "cannot be read" in refusal("x" * 5000)
    secret.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for source in (secret, str(secret), tmp_path):
        assert str(tmp_path) not in refusal(source)


def test_a_url_is_no_path() -> None:
    for url in ("https://example.com/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        message = refusal(url)
        assert "URL" in message
        assert url not in message


def test_a_device_is_refused() -> None:
    assert "no regular file" in refusal("/dev/zero")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")


def test_of_a_large_file_that_is_no_picture_only_the_head_is_read(tmp_path: Path) -> None:
    with (tmp_path / "film").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    assert "none of the formats" in refusal(tmp_path / "film")


def test_the_parameter_is_named() -> None:
    sources: list[Any] = [b"", b"GIF89a", "/nowhere", None, np.zeros(3), Image.new("RGB", (0, 1)), b"BM" + bytes(99)]
    for source in sources:
        with pytest.raises(ImageError) as caught:
            prepare_image(source, VISION, exif=True, max_pixels=9, param="messages.0.content.1.image_url")
        assert caught.value.param == "messages.0.content.1.image_url"


def test_the_pixel_limit_holds_for_every_kind_of_source(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(10, 11))
    path = tmp_path / "a.png"
    picture.save(path)
    for source in (picture, path, path.read_bytes(), np.asarray(picture)):
        assert load_rgb(source, exif=True, max_pixels=110).size == (11, 10)
        message = refusal(source, max_pixels=109)
        assert all(part in message for part in ("11 x 10", "110 pixels", "109"))


def test_a_side_is_limited_too() -> None:
    assert str(MAX_SIDE) in refusal(Image.new("L", (MAX_SIDE + 1, 1)))


def test_a_pillow_picture_is_left_as_it_was() -> None:
    file = oriented("PNG", 6)
    picture = Image.open(io.BytesIO(file))
    before = (picture.mode, picture.size, dict(picture.info))
    assert rgb(picture).shape == (48, 32, 3)
    assert (picture.mode, picture.size, dict(picture.info)) == before
    palette = Image.fromarray(GREY).convert("P")
    pixels = palette.tobytes()
    prepare(palette)
    assert (palette.mode, palette.tobytes()) == ("P", pixels)


def test_a_pillow_picture_whose_file_is_closed_or_cut_is_refused() -> None:
    file = encoded(Image.fromarray(noise(100, 100)), "PNG")
    with Image.open(io.BytesIO(file)) as picture:
        pass
    picture.close()
    assert "PIL image" in refusal(picture)
    assert "PIL image" in refusal(Image.open(io.BytesIO(file[: len(file) // 2])))


def test_one_lazy_picture_may_be_prepared_by_many_threads() -> None:
    file = encoded(Image.fromarray(noise(300, 400)), "PNG")
    expected = prepare(file).digest
    for _ in range(10):
        picture, start = Image.open(io.BytesIO(file)), threading.Barrier(4)

        def work(picture: Image.Image = picture, start: threading.Barrier = start) -> bytes:
            start.wait()
            return hashlib.sha256(rgb(picture).tobytes()).digest()

        with ThreadPoolExecutor(4) as pool:
            assert len({future.result() for future in [pool.submit(work) for _ in range(4)]}) == 1
        assert prepare(picture).digest == expected


def test_out_of_memory_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", fail)
        with pytest.raises(ImageError, match="memory"):
            prepare(COLOUR)
    file = encoded(Image.fromarray(COLOUR), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert "memory" in refusal(file)


# Digest


def test_digest_tells_pictures_apart() -> None:
    array = noise(30, 100)
    digests = {
        prepare(array).digest,
        prepare(array.reshape(100, 30, 3)).digest,  # the same bytes, another shape
        prepare(array[:, :, ::-1]).digest,
        prepare(array, replace(VISION, max_crops=6)).digest,
        prepare(array, replace(VISION, overlap_margin=5)).digest,
        prepare(array, replace(VISION, crop_size=392)).digest,
    }
    assert len(digests) == 6
    assert {len(digest) for digest in digests} == {32}
    assert prepare(array, replace(VISION, enc_n_layers=3)).digest in digests


def test_digest_depends_on_what_is_seen_only() -> None:
    picture = Image.fromarray(COLOUR)
    assert prepare(encoded(picture, "PNG")).digest == prepare(encoded(picture, "BMP")).digest
    file = oriented("PNG", 6)
    assert prepare(file).digest == prepare(rgb(file)).digest != prepare(file, exif=False).digest


def test_digest_of_a_large_picture_covers_its_last_row() -> None:
    array = noise(700, 900)
    other = array.copy()
    other[-1, -1, 2] ^= 1
    assert prepare(array).digest != prepare(other).digest
