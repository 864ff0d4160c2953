"""The vision tower's operations against plain loops in float64.

Tolerance 1e-6 of the RMS: float32 products of 72 terms, averages of a few cells. bfloat16 pixels are rounded by 2^-9.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import crop_attention, crop_patches, pooled_map
from tests.kernels.compare import Array, randn, rms_ratio, to_array


@pytest.mark.parametrize(("N", "side", "patch"), [(1, 28, 14), (3, 42, 14), (2, 6, 2)])
def test_patches_are_channel_row_column(N: int, side: int, patch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (N, side, side, 3), dtype=torch.uint8, generator=generator)
    G = side // patch
    found = crop_patches(crops, patch, torch.float32)
    assert found.shape == (N, G * G, 3 * patch * patch)
    for n in range(N):
        for row in range(G):
            for col in range(G):
                want = [
                    (
                        np.float32(crops[n, row * patch + y, col * patch + x, c].item()) / np.float32(255)
                        - np.float32(0.5)
                    )
                    / np.float32(0.5)
                    for c in range(3)
                    for y in range(patch)
                    for x in range(patch)
                ]
                assert found[n, row * G + col].tolist() == want  # the same float32 operations: equal bits


def test_patches_are_normalised_before_they_are_rounded() -> None:
    crops = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    found = crop_patches(crops, 16, torch.bfloat16)
    want = ((torch.arange(256).float() / 255 - 0.5) / 0.5).to(torch.bfloat16)
    assert torch.equal(found[0, 0].view(3, 256), want.expand(3, 256))


@pytest.mark.parametrize(("N", "rows", "heads", "K"), [(2, 9, 2, 72), (1, 25, 1, 72), (3, 4, 3, 8)])
def test_attention_within_each_crop(N: int, rows: int, heads: int, K: int) -> None:
    qkv = randn(N, rows, 3 * heads * K)
    parts = to_array(qkv).reshape(N, rows, 3, heads, K)
    want = np.empty((N, rows, heads * K))
    for n in range(N):
        for h in range(heads):
            for t in range(rows):
                scores = np.array([parts[n, t, 0, h] @ parts[n, j, 1, h] for j in range(rows)]) / math.sqrt(K)
                odds = np.exp(scores - scores.max())
                want[n, t, h * K : (h + 1) * K] = odds @ parts[n, :, 2, h] / odds.sum()
    assert rms_ratio(crop_attention(qkv, heads), want) < 1e-6


def stitched(local: Array, tiling: tuple[int, int], G: int, margin: int) -> Array:
    """Cell by cell: each tile gives the patches it keeps, at the place where they lie in the whole."""
    rows, cols = tiling
    tiles = local.reshape(rows, cols, G, G, -1)

    def kept(i: int, count: int) -> range:
        return range(margin if i else 0, G - (margin if i < count - 1 else 0))

    return np.array(
        [[tiles[i, j, y, x] for j in range(cols) for x in kept(j, cols)] for i in range(rows) for y in kept(i, rows)]
    )


def pooled(whole: Array, G: int) -> Array:
    height, width = whole.shape[:2]
    out = np.empty((G, G, whole.shape[2]))
    for i in range(G):
        for j in range(G):
            top, bottom = i * height // G, math.ceil((i + 1) * height / G)
            left, right = j * width // G, math.ceil((j + 1) * width / G)
            cells = [whole[y, x] for y in range(top, bottom) for x in range(left, right)]
            out[i, j] = sum(cells) / len(cells)
    return out.reshape(G * G, -1)


@pytest.mark.parametrize("tiling", [(1, 1), (1, 2), (2, 1), (2, 4), (3, 4), (1, 12), (12, 1), (4, 3)])
@pytest.mark.parametrize(("G", "margin"), [(27, 4), (9, 2), (5, 0)], ids=["27-4", "9-2", "5-0"])
def test_pooled_map_against_direct_bins(tiling: tuple[int, int], G: int, margin: int) -> None:
    local = randn(tiling[0] * tiling[1], G * G, 3)
    want = pooled(stitched(to_array(local), tiling, G, margin), G)
    assert rms_ratio(pooled_map(local, tiling, margin), want) < 1e-6
