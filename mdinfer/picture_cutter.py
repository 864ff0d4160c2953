"""Cuts whole pictures up on the device: the bytes that `image.py` makes of them with Pillow. For one thread."""

from __future__ import annotations

from collections import OrderedDict

import PIL
import torch

from mdinfer.config import VisionConfig
from mdinfer.image import tile_corners, tiled_size
from mdinfer.kernels import ResizeTable, resize_arrays, resize_lanczos
from mdinfer.uncut import UncutPicture
from mdinfer.upload import upload

TABLE_BYTES = 16 << 20  # of the device, for tables of sizes seen before: 0.1 to 2 MB each


class PictureCutter:
    def __init__(self, config: VisionConfig, device: torch.device, capacity: int = TABLE_BYTES) -> None:
        self._config, self._device, self._capacity = config, device, capacity
        self._tables: OrderedDict[tuple[int, int], ResizeTable] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Of the tables that are kept."""
        return sum(table.nbytes for table in self._tables.values())

    def cut(self, picture: UncutPicture, out: torch.Tensor) -> None:
        """Write a picture's crops (count, side, side, 3) uint8, all of them, as `Crops.pixels` has them.

        Nothing waits for the device. Raises torch.OutOfMemoryError.
        """
        side, tiling = self._config.crop_size, picture.tiling
        whole = picture.pixels.to(self._device, non_blocking=True)
        out[0] = self._resized(whole, side, side)
        if tiling == (1, 1):
            out[1] = out[0]
            return
        tiled = self._resized(whole, *tiled_size(tiling, self._config))
        for tile, (y, x) in zip(out[1:], tile_corners(tiling, self._config), strict=True):
            tile.copy_(tiled[y : y + side, x : x + side])

    def _resized(self, picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
        H, W, _ = picture.shape
        down_first = height_comes_first((W, H), (width, height))
        return resize_lanczos(picture, self._table(W, width), self._table(H, height), down_first=down_first)

    def _table(self, source: int, target: int) -> ResizeTable:
        table = self._tables.get((source, target))
        if table is None:
            window, digits = upload(list(resize_arrays(source, target)), self._device)
            table = self._tables[source, target] = ResizeTable(
                source=source, target=target, window=window, digits=digits
            )
            while len(self._tables) > 1 and self.nbytes > self._capacity:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end((source, target))
        return table


def height_comes_first(
    source: tuple[int, int], target: tuple[int, int], pillow: int = int(PIL.__version__.split(".")[0])
) -> bool:
    """Whether Pillow of this major version resizes a picture's height before its width; sizes are (width, height).

    Bytes depend on it, for what comes first is rounded. It was found by experiment: from version 13 on, the height
    comes first where it loses more than twice as many pixels as the width; in 12.3, where it is more than 100 times
    the width and loses any.
    """
    (W, H), (width, height) = source, target
    if height >= H:
        return False
    return H - height > 2 * (W - width) if pillow >= 13 else H > 100 * W
