"""The vision tower's own operations: patches out of pixels, attention within a crop, the map of a picture's crops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch


def crop_patches(crops: torch.Tensor, patch: int, dtype: torch.dtype, width: int) -> torch.Tensor:
    """(N, G * G, width): uint8 crops (N, side, side, 3) as normalised patches, zeros behind their 3 * patch * patch.

    A value x becomes (x / 255 - 0.5) / 0.5 in float32, then `dtype`. Patches run left to right, top to bottom;
    within a patch the order is channel, row, column. Rows of a multiple of 16 bytes make the product with them fast.
    """
    assert crops.dtype == torch.uint8 and crops.shape[1] == crops.shape[2] and crops.shape[1] % patch == 0
    assert width >= crops.shape[3] * patch * patch, (width, crops.shape, patch)
    if dispatch.compiled(crops):
        from mdinfer.kernels._triton import patches

        return patches.crop_patches(crops, patch, dtype, width)
    return crop_patches_torch(crops, patch, dtype, width)


def crop_patches_torch(crops: torch.Tensor, patch: int, dtype: torch.dtype, width: int) -> torch.Tensor:
    """The torch body of `crop_patches`."""
    N, side, _, channels = crops.shape
    G, inputs = side // patch, channels * patch * patch
    pixels = crops.view(N, G, patch, G, patch, channels).permute(0, 1, 3, 5, 2, 4)
    values = pixels.reshape(N, G * G, inputs).float().div_(255).sub_(0.5).div_(0.5).to(dtype)
    return values if width == inputs else F.pad(values, (0, width - inputs))


def crop_attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, P, C): softmax(q k^T / sqrt(K)) v of each head over the P positions of each crop.

    qkv (N, P, 3C) holds q, then k, then v, each of them heads x K.
    """
    assert qkv.dim() == 3 and qkv.shape[2] % (3 * heads) == 0, (qkv.shape, heads)
    if dispatch.compiled(qkv):
        from mdinfer.kernels._triton import vision_attention

        return vision_attention.crop_attention(qkv, heads)
    return crop_attention_torch(qkv, heads)


def crop_attention_torch(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """The torch body of `crop_attention`."""
    N, rows, width = qkv.shape
    q, k, v = qkv.view(N, rows, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, rows, width // 3)


def joined_map(
    features: torch.Tensor, tiling: tuple[int, int], margin: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """(G * G, 2C): at each position of a picture the global crop's features, then those of the pooled local map.

    features (1 + rows * cols, G * G, C): the global crop, then the tiles row by row. The tiles are laid out as one
    map, each without `margin` patches on every side that faces another tile; output cell i of the map's side S
    averages its cells floor(i S / G) .. ceil((i + 1) S / G). `out`, contiguous, is written and returned where given.
    """
    count, positions, C = features.shape
    G = math.isqrt(positions)
    assert count == 1 + tiling[0] * tiling[1] and positions == G * G and 2 * margin < G, (features.shape, tiling)
    if out is None:
        out = features.new_empty(positions, 2 * C)
    assert out.shape == (positions, 2 * C) and out.dtype == features.dtype and out.is_contiguous(), out.shape
    if dispatch.compiled(features):
        from mdinfer.kernels._triton import pooling

        pooling.joined_map(features, tiling, margin, out)
    else:
        joined_map_torch(features, tiling, margin, out)
    return out


def joined_map_torch(features: torch.Tensor, tiling: tuple[int, int], margin: int, out: torch.Tensor) -> None:
    """The torch body of `joined_map`."""
    torch.cat((features[0], _pooled(features[1:], tiling, margin)), dim=-1, out=out)


def _pooled(local: torch.Tensor, tiling: tuple[int, int], margin: int) -> torch.Tensor:
    """(G * G, C) of the tiles (rows * cols, G * G, C)."""
    rows, cols = tiling
    count, positions, C = local.shape
    G = math.isqrt(positions)
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
