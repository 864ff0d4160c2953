"""Patches of uint8 pixels: the definition's own float32 operations, so equal bits; one rounding in other dtypes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdinfer.kernels._triton import patches
from mdinfer.kernels._triton.launch import Config
from tests.kernels import vision_twin
from tests.kernels.compare import rms_ratio, store_error, to_array


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter too."""
    monkeypatch.setattr(patches, "INTERPRETER", Config(blocks={"BLOCK": 4096}))


def pixels(N: int, side: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(N + side)
    return torch.randint(0, 256, (N, side, side, channels), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("N", "side", "patch", "width"),
    [(1, 14, 14, 588), (2, 28, 14, 592), (1, 378, 14, 592), (17, 6, 2, 16), (3, 9, 3, 27), (2, 42, 14, 1024)],
)
def test_every_number_is_in_its_place(N: int, side: int, patch: int, width: int, device: torch.device) -> None:
    crops = pixels(N, side)
    found = patches.crop_patches(crops.to(device), patch, torch.float32, width)
    assert np.array_equal(to_array(found), vision_twin.patches(crops, patch, width))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    crops = pixels(2, 28)
    found = patches.crop_patches(crops.to(device), 14, dtype, 592)
    assert found.dtype == dtype and not found[:, :, 588:].any()
    assert rms_ratio(found, vision_twin.patches(crops, 14, 592)) < store_error(dtype)


def test_every_value(device: torch.device) -> None:
    crops = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).to(device)
    found = patches.crop_patches(crops, 16, torch.float32, 768)
    want = (torch.arange(256).float() / 255 - 0.5) / 0.5
    assert torch.equal(found[0, 0].view(3, 256).cpu(), want.expand(3, 256))


def test_no_crops(device: torch.device) -> None:
    assert patches.crop_patches(pixels(0, 28).to(device), 14, torch.float32, 592).shape == (0, 4, 592)
