"""Resized pictures against Pillow's, to the byte: its own order of steps, one side at a time, and both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from mdinfer.kernels import ResizeTable, resize, resize_arrays, resize_lanczos

Pixels = npt.NDArray[np.uint8]


def table(source: int, target: int) -> ResizeTable:
    window, digits = map(torch.from_numpy, resize_arrays(source, target))
    return ResizeTable(source=source, target=target, window=window, digits=digits)


def drawn(kind: str, height: int, width: int, seed: int = 0) -> Pixels:
    """ "noise", or "extremes" of 0 and 255, which overshoot most."""
    draw = np.random.default_rng(seed)
    if kind == "noise":
        return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ends: Pixels = draw.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
    return ends


def resized(picture: Pixels, height: int, width: int, *, down_first: bool = False) -> Pixels:
    H, W, _ = picture.shape
    out = resize_lanczos(torch.from_numpy(picture), table(W, width), table(H, height), down_first=down_first)
    found: Pixels = out.numpy()
    return found


def pillow(picture: Pixels, *sizes: tuple[int, int]) -> Pixels:
    """Resized to each (height, width) in turn."""
    image = Image.fromarray(picture)
    for height, width in sizes:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["noise", "extremes"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((1, 378), (2, 378), (3, 644), (377, 378), (378, 378), (379, 378), (850, 1176), (600, 644), (1303, 910)),
        *((4032, 1176), (4032, 378), (15120, 378), (50, 7), (64, 1), (33, 32), (5, 5)),
    ],
    ids=lambda n: str(n),
)
def test_one_side(source: int, target: int, kind: str) -> None:
    for picture in (drawn(kind, 3, source), drawn(kind, source, 2)):
        H, W, _ = picture.shape
        height, width = (H, target) if H == 3 else (target, W)
        assert np.array_equal(resized(picture, height, width), pillow(picture, (height, width)))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *(((600, 850), (644, 1176)), ((1303, 150), (910, 1176)), ((1, 1), (378, 378)), ((900, 3), (378, 644))),
        *(((3, 900), (644, 378)), ((240, 320), (378, 378)), ((700, 700), (378, 378)), ((31, 33), (32, 64))),
    ],
    ids=lambda size: "x".join(map(str, size)),
)
@pytest.mark.parametrize("chunk", [1, 1 << 20, resize.CHUNK_BYTES])
def test_both_sides_in_either_order(
    source: tuple[int, int], target: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "CHUNK_BYTES", chunk)
    (H, W), (height, width) = source, target
    picture = drawn("noise", H, W)
    assert np.array_equal(resized(picture, height, width), pillow(picture, (H, width), target))
    assert np.array_equal(resized(picture, height, width, down_first=True), pillow(picture, (height, W), target))


@pytest.mark.parametrize("source", [300, 378, 850, 4096, 15120])
def test_sums_are_exact_in_whatever_order(source: int) -> None:
    """Whole numbers below 2^24 are exact in float32, digits and pixels in bfloat16; coefficients add up to 1."""
    _, digits = resize_arrays(source, 378)
    assert 255 * np.abs(digits.astype(np.int64)).sum(axis=2).max() < 1 << 24
    assert torch.equal(torch.arange(256).bfloat16().long(), torch.arange(256))
    parts = torch.from_numpy(digits)
    assert torch.equal(parts.bfloat16().to(torch.int8), parts)
    whole = digits.reshape(-1, 3, resize.BLOCK, digits.shape[2]).astype(np.int64)
    sums = (whole * np.array([1 << 16, 1 << 8, 1])[:, None, None]).sum(axis=(1, 3)).flatten()[:378]
    assert np.abs(sums - (1 << 22)).max() <= resize.resize_taps(source, 378) / 2  # half a unit of each coefficient


def test_what_would_not_be_exact_is_refused() -> None:
    longest = (resize.MAX_TAPS - 1) // 6 * 378
    assert resize.resize_taps(longest, 378) <= resize.MAX_TAPS
    with pytest.raises(AssertionError):
        resize_arrays(2 * longest, 378)
