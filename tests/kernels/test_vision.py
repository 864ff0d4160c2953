"""The vision tower's operations against plain loops in float64.

Tolerance 1e-6 of the RMS: float32 products of 72 terms, averages of a few cells. bfloat16 pixels are rounded by 2^-9.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import crop_attention, crop_patches, joined_map
from tests.kernels import vision_twin
from tests.kernels.compare import randn, rms_ratio, to_array


@pytest.mark.parametrize(("N", "side", "patch", "width"), [(1, 28, 14, 588), (3, 42, 14, 592), (2, 6, 2, 16)])
def test_patches_are_channel_row_column(N: int, side: int, patch: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (N, side, side, 3), dtype=torch.uint8, generator=generator)
    found = crop_patches(crops, patch, torch.float32, width)
    assert to_array(found).tolist() == vision_twin.patches(crops, patch, width).tolist()


def test_patches_are_normalised_before_they_are_rounded() -> None:
    crops = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    found = crop_patches(crops, 16, torch.bfloat16, 768)
    want = ((torch.arange(256).float() / 255 - 0.5) / 0.5).to(torch.bfloat16)
    assert torch.equal(found[0, 0].view(3, 256), want.expand(3, 256))


def test_patches_do_not_fit_a_smaller_width() -> None:
    with pytest.raises(AssertionError):
        crop_patches(torch.zeros(1, 28, 28, 3, dtype=torch.uint8), 14, torch.float32, 584)


@pytest.mark.parametrize(("N", "rows", "heads", "K"), [(2, 9, 2, 72), (1, 25, 1, 72), (3, 4, 3, 8)])
def test_attention_within_each_crop(N: int, rows: int, heads: int, K: int) -> None:
    qkv = randn(N, rows, 3 * heads * K)
    assert rms_ratio(crop_attention(qkv, heads), vision_twin.attention(to_array(qkv), heads)) < 1e-6


@pytest.mark.parametrize("tiling", [(1, 1), (1, 2), (2, 1), (2, 4), (3, 4), (1, 12), (12, 1), (4, 3)])
@pytest.mark.parametrize(("G", "margin"), [(27, 4), (9, 2), (5, 0)], ids=["27-4", "9-2", "5-0"])
def test_joined_map_against_direct_bins(tiling: tuple[int, int], G: int, margin: int) -> None:
    features = randn(1 + tiling[0] * tiling[1], G * G, 3)
    want = vision_twin.joined_map(to_array(features), tiling, G, margin)
    assert rms_ratio(joined_map(features, tiling, margin), want) < 1e-6


def test_joined_maps_of_pictures_share_a_buffer() -> None:
    pictures = [(randn(2, 9, 4), (1, 1)), (randn(7, 9, 4, seed=1), (2, 3))]
    out = torch.empty(2, 9, 8)
    for (features, tiling), part in zip(pictures, out, strict=True):
        assert joined_map(features, tiling, 1, part) is part
    for (features, tiling), part in zip(pictures, out, strict=True):
        assert torch.equal(part, joined_map(features, tiling, 1))


def test_joined_map_counts_crops() -> None:
    with pytest.raises(AssertionError):
        joined_map(randn(4, 9, 2), (2, 2), 1)
