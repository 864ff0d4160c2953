"""The global crop beside the pooled map of the tiles: one program a few positions and a block of columns."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, launch, target_of

# Bins differ by a cell in each direction, so all positions of a program go through as many cells as the largest bin
# may have. 4 positions x 128 columns are one load of 16 bytes a thread with 2 warps, and 1647 programs of 1152 columns
# keep every processor full of loads. Not measured. The interpreter pays by program.
CONFIG = Config(blocks={"POSITIONS": 4, "COLUMNS": 128}, warps=2)
INTERPRETER = Config(blocks={"POSITIONS": 1024, "COLUMNS": 256})


@triton.jit
def _bin(i, tiles, margin, G: tl.constexpr):
    """First row (or column) of bin i in the map of `tiles` tiles, and how many it takes."""
    side = tiles * G - (tiles - 1) * 2 * margin
    first = i * side // G
    return first, ((i + 1) * side + G - 1) // G - first


@triton.jit
def _tile(y, tiles, margin, G: tl.constexpr):
    """The tile that row (or column) y of the map is taken from, and its row there.

    Tiles overlap by twice the margin in the map; each gives way at `margin` from its inner edges.
    """
    step = G - 2 * margin
    tile = tl.minimum(tl.maximum(y - margin, 0) // step, tiles - 1)
    return tile, y - tile * step


@triton.jit(do_not_specialize=["rows", "cols", "margin", "tall", "wide"])
def joined_map_kernel(
    features_ptr, out_ptr, rows, cols, margin, tall, wide,
    G: tl.constexpr, C: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """tall, wide: at least as many rows and columns as any bin takes."""
    wait_for_earlier(PDL)
    ACROSS: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    position = tl.program_id(0) // ACROSS * POSITIONS + tl.arange(0, POSITIONS)
    columns = tl.program_id(0) % ACROSS * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (position < G * G)[:, None] & (columns < C)
    at = position[:, None] * C + columns
    out_ptr += at + position[:, None] * C
    tl.store(out_ptr, tl.load(features_ptr + at, mask=inside), mask=inside)

    local_ptr = features_ptr + G * G * C + columns
    top, height = _bin(position // G, rows, margin, G)
    left, width = _bin(position % G, cols, margin, G)
    total = tl.zeros((POSITIONS, COLUMNS), tl.float32)
    for down in range(tall):
        tile_row, y = _tile(top + down, rows, margin, G)
        for right in range(wide):
            tile_col, x = _tile(left + right, cols, margin, G)
            place = ((tile_row * cols + tile_col) * G + y) * G + x
            taken = inside & ((down < height) & (right < width))[:, None]
            total += tl.load(local_ptr + place[:, None] * C, mask=taken, other=0.0).to(tl.float32)
    mean = total / (height * width)[:, None]
    tl.store(out_ptr + C, mean.to(out_ptr.dtype.element_ty), mask=inside)


def joined_map(features: torch.Tensor, tiling: tuple[int, int], margin: int, out: torch.Tensor) -> None:
    features = features.contiguous()
    _, positions, C = features.shape
    G = math.isqrt(positions)
    config = CONFIG if target_of(features).capability else INTERPRETER
    grid = (triton.cdiv(positions, config.blocks["POSITIONS"]) * triton.cdiv(C, config.blocks["COLUMNS"]),)
    largest = (_largest_bin(tiles, margin, G) for tiles in tiling)
    launch(joined_map_kernel, grid, features, out, *tiling, margin, *largest, G=G, C=C, config=config)


def _largest_bin(tiles: int, margin: int, G: int) -> int:
    """Cells of a side that a bin may take: its own share, and one begun at either end."""
    share, rest = divmod(tiles * G - (tiles - 1) * 2 * margin, G)
    return share + (2 if rest else 0)
