"""One picture, from whatever holds it to the crops that the vision tower sees.

Owns decoding to RGB (through Pillow), rotation, tiling, resizing and the picture's digest; stateless and
thread-safe. File headers are `image_file.py`'s, data URLs `data_url.py`'s, scaling to [-1, 1] the model's.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from mdinfer.config import VisionConfig
from mdinfer.errors import ImageError
from mdinfer.image_file import PictureFile, has_known_format, inspect_file
from mdinfer.large_bytes import Bytes, LargeBytes

ImageSource: TypeAlias = "str | os.PathLike[str] | Bytes | Image.Image | npt.NDArray[np.uint8]"

PREPROCESSING_VERSION = 1  # raise it when the same picture gives other crops: digests then differ
MAX_SIDE = 1 << 17  # a Lanczos table takes 48 bytes per pixel of a side, so a line of 50 million would take 2.4 GB

# Importing a plugin registers it: Image.open then never looks for others, whichever thread is the first.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_STRIP_PIXELS = 1 << 18  # fits a core's cache: 3 bytes each, and 4 as Pillow has them
# One Pillow picture given in two requests may be loaded by two threads at once, which Pillow does not allow.
_LOAD_LOCKS = tuple(threading.Lock() for _ in range(64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crops:
    """A picture cut up for the vision tower.

    pixels   (n, crop, crop, 3) uint8 RGB, C-contiguous: crop 0 is the whole picture, then tiles row by row
    tiling   (rows, columns) of the tiles, n - 1 = rows * columns
    width    in pixels, after rotation; height likewise
    digest   SHA-256 of RGB pixels, size, PREPROCESSING_VERSION and what of the config shapes the crops
    """

    pixels: npt.NDArray[np.uint8]
    tiling: tuple[int, int]
    width: int
    height: int
    digest: bytes

    @property
    def count(self) -> int:
        return len(self.pixels)


def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """(rows, columns) of tiles of `window` pixels for a picture of this size less its outer margins.

    The reference's function of this name, for crops must equal its: at most `max_crops` tiles, but one side that
    is more than `max_crops` times the other makes one row or column of up to sqrt(max_crops * long / short).
    """
    if height <= window or width <= window:
        return 1, 1
    min_rows, min_cols = math.ceil(height / window), math.ceil(width / window)
    if min_rows * min_cols > max_crops:
        ratio = math.sqrt(max_crops / (min_rows * min_cols))
        return max(1, math.floor(min_rows * ratio)), max(1, math.floor(min_cols * ratio))
    rows = max(math.floor(math.sqrt(max_crops * height / width)), min_rows)
    cols = max(math.floor(math.sqrt(max_crops * width / height)), min_cols)
    if rows * cols > max_crops:
        if cols > rows:
            cols = max_crops // rows
        else:
            rows = max_crops // cols
    return max(1, rows), max(1, cols)


def image_tiling(height: int, width: int, config: VisionConfig) -> tuple[int, int]:
    """(rows, columns) of tiles for a picture of this size in pixels."""
    margin = _margin(config)
    return select_tiling(height - margin, width - margin, _window(config), config.max_crops)


def tiled_size(tiling: tuple[int, int], config: VisionConfig) -> tuple[int, int]:
    """(height, width) in pixels of the picture that is cut into so many tiles."""
    (rows, cols), window, margin = tiling, _window(config), _margin(config)
    return rows * window + margin, cols * window + margin


def tile_corners(tiling: tuple[int, int], config: VisionConfig) -> list[tuple[int, int]]:
    """(y, x) of each tile's first pixel there, row by row."""
    window = _window(config)
    return [(row * window, col * window) for row in range(tiling[0]) for col in range(tiling[1])]


def strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture a few rows at a time, each with the number of its first one: no second copy of all, and quicker."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def load_rgb(source: ImageSource, *, exif: bool, max_pixels: int, param: str = "image") -> Image.Image:
    """A picture in mode RGB; not to be written to, for it can be the caller's own.

    source      a path or the bytes of a JPEG, PNG, WebP, GIF or BMP file (told by its bytes; first frame), a
                Pillow picture of any mode, or a numpy array (height, width, 3) of uint8
    exif        rotate by the EXIF orientation, if there is a readable one
    max_pixels  larger pictures are refused, files by their header before anything is decoded

    Alpha is dropped, not composited; ICC profiles are ignored; 16-bit grey keeps its high byte; the 32-bit
    modes I and F are clipped to 0..255. Raises ImageError for what cannot be read; no message holds a path.
    """
    if isinstance(source, str | os.PathLike):
        source = read_file(source, param)
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if isinstance(source, bytes | LargeBytes):
        return _decode(inspect_file(source, param=param), exif, max_pixels, param)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels, param)
    if isinstance(source, Image.Image):
        return _from_pillow(source, exif, max_pixels, param)
    raise ImageError(
        "an image must be a path, the bytes of a picture file, a PIL image or a numpy array of shape "
        f"(height, width, 3) and dtype uint8, found {type(source).__name__}",
        param=param,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedPicture:
    """A picture decoded and identified, but not yet cut, which takes longer; `digest` is that of its crops."""

    rgb: Image.Image
    digest: bytes
    config: VisionConfig
    param: str

    @property
    def tiling(self) -> tuple[int, int]:
        return image_tiling(self.rgb.height, self.rgb.width, self.config)

    def crops(self) -> Crops:
        """Tile and resize (Pillow's LANCZOS)."""
        try:
            return Crops(
                pixels=_cut(self.rgb, self.tiling, self.config),
                tiling=self.tiling,
                width=self.rgb.width,
                height=self.rgb.height,
                digest=self.digest,
            )
        except MemoryError:
            raise _no_memory(self.param) from None


def open_picture(
    source: ImageSource, config: VisionConfig, *, exif: bool, max_pixels: int, param: str = "image"
) -> OpenedPicture:
    """Decode, rotate and hash a picture. Takes and raises as `load_rgb`."""
    rgb = load_rgb(source, exif=exif, max_pixels=max_pixels, param=param)
    try:
        return OpenedPicture(rgb=rgb, digest=_digest(rgb, config), config=config, param=param)
    except MemoryError:
        raise _no_memory(param) from None


def prepare_image(
    source: ImageSource, config: VisionConfig, *, exif: bool, max_pixels: int, param: str = "image"
) -> Crops:
    """`open_picture` and its crops."""
    return open_picture(source, config, exif=exif, max_pixels=max_pixels, param=param).crops()


def _margin(config: VisionConfig) -> int:
    """Pixels of both outer margins together."""
    return 2 * config.overlap_margin * config.enc_patch_size


def _window(config: VisionConfig) -> int:
    """Pixels from one tile to the next."""
    return config.crop_size - _margin(config)


def _cut(picture: Image.Image, tiling: tuple[int, int], config: VisionConfig) -> npt.NDArray[np.uint8]:
    (rows, cols), crop = tiling, config.crop_size
    pixels = np.empty((1 + rows * cols, crop, crop, 3), np.uint8)
    pixels[0] = np.asarray(picture.resize((crop, crop), Image.Resampling.LANCZOS))
    if tiling == (1, 1):  # the one tile is the whole picture too
        pixels[1] = pixels[0]
        return pixels
    height, width = tiled_size(tiling, config)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    for tile, (y, x) in zip(pixels[1:], tile_corners(tiling, config), strict=True):
        tile[:] = resized[y : y + crop, x : x + crop]
    return pixels


def _digest(picture: Image.Image, config: VisionConfig) -> bytes:
    sizes = (config.crop_size, config.enc_patch_size, config.overlap_margin, config.max_crops)
    header = struct.pack("<7q", PREPROCESSING_VERSION, picture.width, picture.height, *sizes)
    digest = hashlib.sha256(header)
    for _, strip in strips(picture):
        digest.update(strip.tobytes())
    return digest.digest()


def _check_size(width: int, height: int, max_pixels: int, param: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width} x {height}: it has no pixels", param=param)
    if width * height > max_pixels:
        raise ImageError(
            f"the picture is {width} x {height}, {width * height} pixels; at most {max_pixels} are allowed "
            "(max_image_pixels): scale it down",
            param=param,
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"the picture is {width} x {height}, a side may have {MAX_SIDE} pixels: cut it", param=param)


def _no_memory(param: str) -> ImageError:
    return ImageError("the picture needs more memory than there is: scale it down", param=param)


def read_file(path: str | os.PathLike[str], param: str) -> bytes:
    """The bytes of a picture file; of any other file (a device, a film) only its head is read."""
    if isinstance(path, str) and ("://" in path[:16] or path[:5].lower() == "data:"):
        raise ImageError("a string is taken as a path, found a URL: pass the picture's bytes", param=param)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # a pipe would block, a device not end
            raise ImageError("the path of the image is no regular file: pass its bytes", param=param)
        with open(path, "rb") as file:
            head = file.read(64)
            return head + file.read() if has_known_format(head) else head
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("the image file was not found: check its path", param=param) from error
    except IsADirectoryError as error:
        raise ImageError("the path of the image is a directory, a file is needed", param=param) from error
    except MemoryError:
        raise _no_memory(param) from None
    except (OSError, ValueError) as error:
        raise ImageError("the image file cannot be read: check path and permissions", param=param) from error


def _decode(file: PictureFile, exif: bool, max_pixels: int, param: str) -> Image.Image:
    _check_size(file.width, file.height, max_pixels, param)
    try:
        data = io.BytesIO(file.data) if isinstance(file.data, bytes) else cast(IO[bytes], file.data)
        picture = Image.open(data, formats=(file.format,))
        if picture.size == (file.width, file.height):  # else the limits were checked on another picture
            picture.load()
            return _upright(_to_rgb(picture), file.orientation if exif else 1)
    except Image.DecompressionBombError:
        raise ImageError(
            f"the picture is {file.width} x {file.height}, more than Pillow allows: scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS along with max_image_pixels",
            param=param,
        ) from None
    except MemoryError:
        raise _no_memory(param) from None
    except Exception:  # Pillow raises nearly anything on damaged files, and its messages can hold addresses
        pass
    raise ImageError(
        f"the {file.format} picture is damaged, cut short or of an unsupported kind: "
        "send the whole file, or save it as PNG",
        param=param,
    )


def _from_pillow(picture: Image.Image, exif: bool, max_pixels: int, param: str) -> Image.Image:
    _check_size(picture.width, picture.height, max_pixels, param)
    try:
        with _LOAD_LOCKS[id(picture) // 64 % len(_LOAD_LOCKS)]:
            picture.load()
            orientation = _orientation(picture) if exif else 1
        return _upright(_to_rgb(picture), orientation)
    except MemoryError:
        raise _no_memory(param) from None
    except Exception:
        raise ImageError(
            f"the PIL image of mode {picture.mode} cannot be read: is its file whole and open?", param=param
        ) from None


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation as Pillow knows it, changes by the caller included; 1 where it cannot be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block must not cost the picture
        return 1


def _from_array(array: npt.NDArray[Any], max_pixels: int, param: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an image array must have shape (height, width, 3) and dtype uint8 (RGB, 0..255), found shape "
            f"{array.shape} and dtype {array.dtype}: convert it, or pass a PIL image",
            param=param,
        )
    height, width, _ = array.shape
    _check_size(width, height, max_pixels, param)
    try:
        return Image.fromarray(np.ascontiguousarray(array))
    except MemoryError:
        raise _no_memory(param) from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Mode RGB without a copy where it is RGB already."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        high = (np.asarray(picture) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        return picture.convert("RGBA").convert("RGB")  # the same pixels; the direct way warns
    return picture.convert("RGB")


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)
