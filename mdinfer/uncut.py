"""Pictures that are left to the device to resize and cut: which ones, how many at a time, and what is kept of them.

The device gives the bytes that the CPU would (`kernels/resize.py`), so which of the two it is changes nothing but the
time. Cutting itself is `picture_cutter.py`'s. Thread-safe.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np
import torch

from mdinfer.image import OpenedPicture, strips, tiled_size
from mdinfer.kernels import resize_arrays
from mdinfer.upload import host_buffer

PICTURE_BYTES = 64 << 20  # of a picture, 3 a pixel: 22 million pixels; the device needs about three times that for one
UNCUT_BYTES = 256 << 20  # of all that wait; crops of a waiting picture take 6 MB at most, whole ones much more
MOST_SHRINK = 40  # times that a side may be longer than a crop's: sums over longer ones would not be exact


@dataclass(frozen=True, kw_only=True, eq=False)
class UncutPicture:
    """What `Crops` are made from.

    pixels   (height, width, 3) uint8 RGB in memory of the host that the device can read
    tiling   (rows, columns) of its tiles
    digest   that of its crops
    """

    pixels: torch.Tensor
    tiling: tuple[int, int]
    digest: bytes

    @property
    def count(self) -> int:
        """Crops that it comes to."""
        return 1 + self.tiling[0] * self.tiling[1]

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


class UncutRoom:
    """Room for `capacity` bytes of pictures that are not cut yet."""

    def __init__(self, device: torch.device, capacity: int = UNCUT_BYTES) -> None:
        self._device = device
        self._left = capacity
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Bytes."""
        return self._left

    def take(self, opened: OpenedPicture) -> UncutPicture | None:
        """The picture as it is, holding room as long as it exists; None where it has to be cut now: it is too large,
        or there is no room, or no memory of that kind.
        """
        picture = opened.rgb
        nbytes = 3 * picture.width * picture.height
        most = MOST_SHRINK * opened.config.crop_size
        if nbytes > PICTURE_BYTES or max(picture.size) > most or not self._reserve(nbytes):
            return None
        try:
            pixels = host_buffer(nbytes, self._device).view(picture.height, picture.width, 3)
            rows = pixels.numpy()
            for top, strip in strips(picture):
                rows[top : top + strip.height] = np.asarray(strip)
            uncut = UncutPicture(pixels=pixels, tiling=opened.tiling, digest=opened.digest)
        except (MemoryError, RuntimeError):  # torch has no class of its own for a host's memory
            self._give(nbytes)
            return None
        except BaseException:
            self._give(nbytes)
            raise
        weakref.finalize(uncut, self._give, nbytes).atexit = False
        _make_tables(opened)
        return uncut

    def _reserve(self, nbytes: int) -> bool:
        with self._lock:
            enough = nbytes <= self._left
            self._left -= nbytes * enough
        return enough

    def _give(self, nbytes: int) -> None:
        with self._lock:
            self._left += nbytes


def _make_tables(opened: OpenedPicture) -> None:
    """Here, so that the engine's own thread finds them made."""
    (W, H), crop = opened.rgb.size, opened.config.crop_size
    height, width = tiled_size(opened.tiling, opened.config)
    for source, target in ((W, crop), (H, crop), (W, width), (H, height)):
        resize_arrays(source, target)
