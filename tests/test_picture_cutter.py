"""What the device cuts is what the CPU cuts, byte for byte, so that one identity does for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdinfer.config import VisionConfig
from mdinfer.image import ImageSource, OpenedPicture, image_tiling, open_picture
from mdinfer.picture_cutter import PictureCutter, height_comes_first
from mdinfer.uncut import UncutRoom

GOLDEN = Path(__file__).parent / "golden"
IMAGES: list[dict[str, Any]] = json.loads((GOLDEN / "crops.json").read_text())["images"]
CPU = torch.device("cpu")
VISION = VisionConfig()


def opened(source: ImageSource, config: VisionConfig = VISION) -> OpenedPicture:
    return open_picture(source, config, exif=True, max_pixels=50_000_000)


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(picture: OpenedPicture, cutter: PictureCutter | None = None) -> None:
    uncut, crops = UncutRoom(CPU).take(picture), picture.crops()
    assert uncut is not None
    assert (uncut.count, uncut.tiling) == (crops.count, crops.tiling)
    assert (uncut.width, uncut.height, uncut.digest) == (crops.width, crops.height, crops.digest)
    out = torch.full(crops.pixels.shape, 99, dtype=torch.uint8)
    (cutter or PictureCutter(picture.config, CPU)).cut(uncut, out)
    assert np.array_equal(out.numpy(), crops.pixels)


@pytest.mark.parametrize("row", IMAGES, ids=lambda row: Path(row["file"]).name)
def test_golden_pictures(row: dict[str, Any]) -> None:
    check(opened(GOLDEN / row["file"]))


@pytest.mark.parametrize(
    ("height", "width"),
    [
        *((1, 1), (1, 900), (900, 1), (1, 15120), (15120, 2), (378, 378), (379, 377), (600, 850), (850, 600)),
        *((2400, 1080), (1080, 1920), (400, 6000), (6000, 400), (3000, 400), (1500, 1500)),
    ],
)
def test_sizes(height: int, width: int) -> None:
    check(opened(noise(height, width)))


def test_a_large_picture() -> None:
    check(opened(noise(4096, 4096)))


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 99))
@settings(max_examples=40)
def test_random_sizes(height: int, width: int, seed: int) -> None:
    check(opened(noise(height, width, seed)), CUTTER)


CUTTER = PictureCutter(VISION, CPU, capacity=1 << 20)


@pytest.mark.parametrize("most", [2, 3, 4, 12])
def test_every_tiling(most: int) -> None:
    """Of small crops, so that the picture of a tiling is small, too: 42 pixels, a window of 14."""
    config = VisionConfig(crop_size=42, overlap_margin=1, max_crops=most)
    cutter, seen = PictureCutter(config, CPU), set[tuple[int, int]]()
    for height in range(40, 480, 12):
        for width in range(40, 480, 12):
            tiling = image_tiling(height, width, config)
            if tiling not in seen:
                seen.add(tiling)
                check(opened(noise(height, width), config), cutter)
    assert seen >= {(1, 1), (1, most), (most, 1)} and max(rows * cols for rows, cols in seen) >= most


def test_the_order_of_the_sides_is_that_of_the_pillow_at_hand() -> None:
    """Around where it changes: a picture whose height loses twice as many pixels as its width, and a few more."""
    draw = np.random.default_rng(3)
    changes = 0
    for number in range(200):
        W, width = (int(n) for n in draw.integers(1, 40, 2))
        height = int(draw.integers(1, 60))
        H = max(1, height + 2 * max(0, W - width) + int(draw.integers(-2, 3)))
        if number == 0:
            W, H, width, height = 2, 250, 20, 60  # the height comes first in all versions
        picture = Image.fromarray(draw.integers(0, 2, (H, W, 3), dtype=np.uint8) * np.uint8(255))
        steps = [(width, H), (width, height)]
        if height_comes_first((W, H), (width, height)):
            steps[0] = (W, height)
            changes += 1
        inner, outer = steps
        by_steps = picture.resize(inner, Image.Resampling.LANCZOS).resize(outer, Image.Resampling.LANCZOS)
        assert by_steps.tobytes() == picture.resize(outer, Image.Resampling.LANCZOS).tobytes(), (W, H, width, height)
    assert 0 < changes < 200


def test_the_order_of_pillow_12() -> None:
    assert height_comes_first((10, 1001), (20, 378), pillow=12)
    assert not height_comes_first((10, 1000), (20, 378), pillow=12)
    assert not height_comes_first((3, 303), (20, 378), pillow=12)


def test_tables_are_kept_up_to_a_limit_and_the_latest_always() -> None:
    cutter = PictureCutter(VISION, CPU, capacity=400_000)
    for height in range(300, 360, 10):
        check(opened(noise(height, 500)), cutter)
        assert 0 < cutter.nbytes <= 400_000
    check(opened(noise(40, 6000)), PictureCutter(VISION, CPU, capacity=0))
