"""The vision tower's own operations: patches out of pixels, attention within a crop, the pooled local map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def crop_patches(crops: torch.Tensor, patch: int, dtype: torch.dtype) -> torch.Tensor:
    """(N, G * G, 3 * patch * patch): uint8 crops (N, side, side, 3) as normalised patches.

    A value x becomes (x / 255 - 0.5) / 0.5 in float32, then `dtype`. Patches run left to right, top to bottom;
    within a patch the order is channel, row, column.
    """
    N, side, _, channels = crops.shape
    G = side // patch
    assert crops.dtype == torch.uint8 and G * patch == side == crops.shape[2]
    pixels = crops.view(N, G, patch, G, patch, channels).permute(0, 1, 3, 5, 2, 4)
    patches = pixels.reshape(N, G * G, channels * patch * patch).float()
    return patches.div_(255).sub_(0.5).div_(0.5).to(dtype)


def crop_attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, G * G, C): full attention within each crop; qkv (N, G * G, 3C) holds q, then k, then v."""
    N, rows, width = qkv.shape
    q, k, v = qkv.view(N, rows, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, rows, width // 3)


def pooled_map(local: torch.Tensor, tiling: tuple[int, int], margin: int) -> torch.Tensor:
    """(G * G, C): the tiles' features as one map, pooled to a crop's grid.

    local is (rows * cols, G * G, C), row by row. Each tile loses `margin` patches on every side that faces
    another tile; output cell i averages the cells floor(i S / G) .. ceil((i + 1) S / G) of the map's side S.
    """
    rows, cols = tiling
    count, positions, C = local.shape
    G = math.isqrt(positions)
    assert rows * cols == count and positions == G * G
    if count == 1:
        return local[0]
    tiles = local.view(rows, cols, G, G, C)
    strips = []
    for i in range(rows):
        top, bottom = margin if i else 0, G - (margin if i < rows - 1 else 0)
        strip = []
        for j in range(cols):
            left, right = margin if j else 0, G - (margin if j < cols - 1 else 0)
            strip.append(tiles[i, j, top:bottom, left:right])
        strips.append(torch.cat(strip, dim=1))
    whole = torch.cat(strips, dim=0).permute(2, 0, 1)
    return F.adaptive_avg_pool2d(whole, (G, G)).permute(1, 2, 0).reshape(positions, C)
