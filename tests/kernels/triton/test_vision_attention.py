"""Attention within crops against float64.

Tolerance: in float32 2e-6 of the RMS: a score sums up to 256 products, each rounded by 2^-24 of about 1, and enters
an exponential; sums over keys average such errors. In other dtypes the store's rounding is added and, on a GPU, that
of the softmax's weights (each by at most half a step of the dtype, over many keys far less together).
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels._triton import vision_attention
from mdinfer.kernels._triton.launch import Config, Target
from tests.kernels import vision_twin
from tests.kernels.compare import randn, rms_ratio, store_error, to_array

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def cut(monkeypatch: pytest.MonkeyPatch, queries: int, keys: int) -> None:
    monkeypatch.setitem(vision_attention.CONFIGS, 0, Config(blocks={"BLOCK_M": queries, "BLOCK_N": keys}))


@pytest.fixture(autouse=True)
def tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter too."""
    cut(monkeypatch, 128, 64)


def tolerance(dtype: torch.dtype) -> float:
    return 2e-6 if dtype == torch.float32 else 2e-6 + 2 * store_error(dtype)


def check(N: int, P: int, heads: int, K: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> None:
    qkv = randn(N, P, 3 * heads * K, scale=scale).to(device, dtype)
    found = vision_attention.crop_attention(qkv, heads)
    assert found.dtype == dtype
    assert rms_ratio(found, vision_twin.attention(to_array(qkv), heads)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "P", "heads", "K"), [(1, 729, 1, 72), (2, 64, 2, 72), (13, 9, 2, 72), (3, 130, 3, 40)])
def test_shapes_of_models(N: int, P: int, heads: int, K: int, dtype: torch.dtype, device: torch.device) -> None:
    check(N, P, heads, K, dtype, device)


@pytest.mark.parametrize("K", [1, 8, 16, 24, 40, 64, 72, 96, 120, 128, 200, 256])
def test_any_head_dim(K: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles alone, then one with a tail of each kind."""
    cut(monkeypatch, 16, 16)
    check(1, 32, 2, K, torch.float32, device)
    check(1, 20, 2, K, torch.float32, device)


@pytest.mark.parametrize("tiles", [(128, 64), (32, 16), (16, 32)], ids=str)
@pytest.mark.parametrize("P", [1, 4, 9, 63, 64, 65, 127, 128, 129])
def test_any_number_of_positions(
    P: int, tiles: tuple[int, int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, *tiles)
    check(2, P, 1, 72, torch.float32, device)


@pytest.mark.parametrize("K", [1, 2, 15, 16, 17, 40, 64, 72, 96, 128, 255, 256])
def test_parts_cover_the_head_dim(K: int) -> None:
    first, rest = vision_attention.parts(K)
    assert first + rest >= K and (rest == 0 or first < K)
    assert all(size & (size - 1) == 0 and (size == 0 or size >= 16) for size in (first, rest))
    assert vision_attention.parts(72) == (64, 16) and vision_attention.parts(64) == (64, 0)


def test_large_scores(device: torch.device) -> None:
    """Scores of hundreds: weights are all but one-hot; nothing overflows. Their error, 2^-24 of 300, is 2e-5."""
    qkv = randn(1, 150, 3 * 72, scale=6).to(device)
    found = vision_attention.crop_attention(qkv, 1)
    assert rms_ratio(found, vision_twin.attention(to_array(qkv), 1)) < 1e-4


def test_nan_stays_in_its_query_or_its_crop(device: torch.device) -> None:
    qkv = randn(3, 30, 3 * 72).to(device)
    sound = vision_attention.crop_attention(qkv, 1)
    qkv[0, 7, 0] = float("nan")  # a query
    qkv[2, 3, 72] = float("nan")  # a key
    found = vision_attention.crop_attention(qkv, 1)
    assert found[0, 7].isnan().all() and found[2].isnan().all()
    found[0, 7] = sound[0, 7]
    assert torch.equal(found[:2], sound[:2])


@pytest.mark.parametrize(("capability", "entry"), [(75, 86), (80, 80), (87, 86), (89, 86), (103, 90), (121, 120)])
def test_a_chip_without_an_entry_takes_that_of_a_lesser_one(capability: int, entry: int) -> None:
    """And never the interpreter's, whose tiles no chip has room for."""
    target = Target(capability=capability, processors=40, shared=64 << 10)
    assert vision_attention.config_of(target, torch.bfloat16, 729, 72) == vision_attention.CONFIGS[entry]


def test_no_crops(device: torch.device) -> None:
    assert vision_attention.crop_attention(torch.empty(0, 9, 3 * 72, device=device), 1).shape == (0, 9, 72)
