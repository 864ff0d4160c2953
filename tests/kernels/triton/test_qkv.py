"""The QKV epilogue's kernels against plain loops in float64.

Tolerance: as for the torch body 1e-6 in float32. In other dtypes the inputs of the product with Wq and Wv are rounded
by half a step, which moves a temperature by that over the square root of their number, and q, k and v are stored
once: one step. In fp8 a row's numbers err by at most 2^-4 / sqrt(3), see tests/kernels/test_qkv.py.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import LayerCache, TokenPlaces, rope_table
from mdinfer.kernels._triton import qkv
from tests.kernels.attention_twin import FP8
from tests.kernels.compare import randn, store_error
from tests.kernels.qkv_twin import run

FLOAT32 = 1e-6
SHAPES = [(2, 64, 4), (1, 8, 1), (3, 12, 5), (5, 64, 32)]


def bound(dtype: torch.dtype) -> float:
    return FLOAT32 + (0.0 if dtype == torch.float32 else store_error(dtype))


@pytest.fixture(params=[1, 2, 16], ids=lambda n: f"shares{n}")
def shares(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the row is cut for the product with Wq and Wv; some shares are empty where it is short."""
    count = int(request.param)
    monkeypatch.setattr(qkv, "_shares", lambda X, tiles, block, target: (count, -(-X // (block * count)) * block))
    return count


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("H", "K", "L"), SHAPES, ids=str)
def test_against_the_twin(H: int, K: int, L: int, dtype: torch.dtype, biased: bool, device: torch.device) -> None:
    assert max(run(qkv.qkv_epilogue, H, K, L, dtype=dtype, biased=biased, device=device).values()) < bound(dtype)


def test_shares_are_added_up(shares: int, device: torch.device) -> None:
    assert max(run(qkv.qkv_epilogue, 2, 64, 4, device=device).values()) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_in_fp8(dtype: torch.dtype, device: torch.device) -> None:
    found = run(qkv.qkv_epilogue, 3, 64, 16, dtype=dtype, stored=FP8, device=device)
    assert found["q"] < bound(dtype)
    assert 0.01 < found["k"] < 0.036
    assert 0.01 < found["v"] < 0.036


@pytest.mark.parametrize("count", [1, 3, 17, 70])
def test_any_number_of_tokens(count: int, device: torch.device) -> None:
    positions = tuple(range(100, 100 + count))
    assert max(run(qkv.qkv_epilogue, 2, 16, 8, positions=positions, device=device).values()) < FLOAT32


def test_tokens_without_a_page_are_written_nowhere(device: torch.device) -> None:
    for stored, most in ((None, FLOAT32), (FP8, 0.036)):
        found = run(qkv.qkv_epilogue, 2, 64, 4, stored=stored, nowhere=(0, 3), device=device)
        assert max(found.values()) < most


@pytest.mark.parametrize("stored", [torch.float32, FP8], ids=["plain", "fp8"])
def test_zero_rows_and_nan_rows(stored: torch.dtype, device: torch.device) -> None:
    """A row of zeros reads back as zeros; one NaN makes a row of the fp8 cache NaN, and leaves other tokens alone."""
    T, H, K = 3, 2, 16
    z = torch.zeros(T, 3 * H * K, device=device)
    z[1, H * K + 3] = float("nan")  # in head 0's key
    z[2] = randn(3 * H * K).to(device)
    shape = (1, H, T, K)
    scales = [torch.full(shape[:3], 7.0, device=device) for _ in "kv"] if stored == FP8 else [None, None]
    k, v = (torch.zeros(shape, dtype=stored, device=device) for _ in "kv")
    cache = LayerCache(k=k, v=v, k_scale=scales[0], v_scale=scales[1])
    at = torch.arange(T, device=device)
    places = TokenPlaces.of(at, torch.zeros_like(at), at, rope_table(T, K, device))
    qkv.qkv_epilogue(z, torch.zeros(2 * H, 3 * H * K, device=device), torch.ones(H, device=device), places, cache, None)
    keys, values = cache.pages([0])
    for scale in (cache.k_scale, cache.v_scale):
        assert scale is None or (scale[0, :, 0] == 1).all()  # not 0, by which rows are divided
    assert not keys[0, :, 0].any() and not values[0, :, 0].any()
    assert keys[0, 0, 1].isnan().all() if stored == FP8 else keys[0, 0, 1].isnan().any()
    assert keys[0, :, 2].isfinite().all() and keys[0, :, 2].any() and values[0, :, 2].isfinite().all()


def test_no_tokens(device: torch.device) -> None:
    cache = LayerCache(k=torch.zeros(1, 2, 4, 8, device=device), v=torch.zeros(1, 2, 4, 8, device=device))
    none = torch.zeros(0, dtype=torch.int64, device=device)
    places = TokenPlaces.of(none, none, none, rope_table(4, 8, device))
    weights = torch.zeros(4, 48, device=device), torch.zeros(2, device=device)
    assert qkv.qkv_epilogue(torch.zeros(0, 48, device=device), *weights, places, cache, None).shape == (0, 2, 8)
