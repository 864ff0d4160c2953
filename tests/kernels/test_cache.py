"""A layer's cache, written and read back by its torch body.

Tolerance: an e4m3 number is off by half a step, 2^-4 of itself, or 2^-10 of the scale where it is subnormal; the
division by the scale and the product with it add a few 2^-24.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import LayerCache
from tests.kernels.compare import randn

FP8 = torch.float8_e4m3fn
P, H, L, K = 5, 3, 4, 24


def cache(dtype: torch.dtype) -> LayerCache:
    """Of NaN, scales too."""
    k, v = (torch.full((P, H, L, K), float("nan")).to(dtype) for _ in "kv")
    if dtype != FP8:
        return LayerCache(k=k, v=v)
    k_scale, v_scale = (torch.full((P, H, L), float("nan")) for _ in "kv")
    return LayerCache(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


def write(into: LayerCache, k: torch.Tensor, v: torch.Tensor, page: list[int], slot: list[int]) -> None:
    into.write(torch.tensor(page), torch.tensor(slot), k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
def test_what_is_written_is_read_back_and_nothing_else(dtype: torch.dtype) -> None:
    """Rows of sizes from 1e-6 to 1e6, each with its own scale; a token without a page goes nowhere."""
    page, slot = [3, 0, -1, 3, 4], [1, 0, 0, 3, 2]
    into, size = cache(dtype), 10.0 ** torch.arange(-6, 9, dtype=torch.float32).view(5, H, 1)
    rows = [randn(5, H, K, seed=seed) * size for seed in (1, 2)]
    write(into, rows[0], rows[1], page, slot)
    for found, want, scale in zip(into.pages(list(range(P))), rows, (into.k_scale, into.v_scale), strict=True):
        assert int((~found.isnan()).sum()) == 4 * H * K
        for i in (0, 1, 3, 4):
            allowed = want[i].abs() * {torch.float32: 0.0, torch.bfloat16: 2.0**-8, FP8: 2.0**-4 + 1e-6}[dtype]
            if scale is not None:
                mine = scale[page[i], :, slot[i]]
                assert torch.allclose(mine, want[i].abs().amax(-1) / 448, rtol=1e-6, atol=0)
                allowed += 2.0**-10 * mine[:, None]
            assert bool(((found[page[i], :, slot[i]].float() - want[i]).abs() <= allowed).all())


def test_rows_of_zeros_and_of_nan_in_fp8() -> None:
    """A row of zeros, or one too small for a scale, is zero; one NaN or infinity spoils its row and no other."""
    into, rows = cache(FP8), randn(4, H, K)
    rows[0], rows[1, 0], rows[2, 1, 5], rows[3, 2, 0] = 0, 1e-42, float("nan"), float("inf")
    write(into, rows, rows, [0, 1, 2, 3], [0, 0, 0, 0])
    for found, scale in zip(into.pages([0, 1, 2, 3]), (into.k_scale, into.v_scale), strict=True):
        assert scale is not None and bool((scale[0, :, 0] == 1).all())
        first = found[:, :, 0]
        assert not first[0].any() and not first[1, 0].any()
        assert bool(first[2, 1].isnan().all()) and bool(first[3, 2].isnan().all())
        sound = torch.ones(4, H, dtype=torch.bool)
        sound[2, 1] = sound[3, 2] = False
        assert bool(first[sound].isfinite().all())


def test_consecutive_pages_are_read_in_place() -> None:
    into, rows = cache(torch.float32), randn(2, H, K)
    write(into, rows, rows, [1, 2], [0, 3])
    assert into.pages([1, 2, 3])[0].data_ptr() == into.k[1].data_ptr()
    k, v = into.pages([2, 1])
    assert torch.equal(k[0, :, 3], rows[1]) and torch.equal(v[1, :, 0], rows[0])


@pytest.mark.parametrize(
    "wrong",
    ["fp8_without_scales", "scales_without_fp8", "one_scale", "scale_of_another_shape", "other_order_in_memory"],
)
def test_what_a_cache_cannot_be(wrong: str) -> None:
    plain, quantised, scale = torch.zeros(P, H, L, K), torch.zeros(P, H, L, K, dtype=FP8), torch.ones(P, H, L)
    k, k_scale, v_scale = {
        "fp8_without_scales": (quantised, None, None),
        "scales_without_fp8": (plain, scale, scale),
        "one_scale": (quantised, scale, None),
        "scale_of_another_shape": (quantised, scale, torch.ones(P, H, L + 1)),
        "other_order_in_memory": (torch.zeros(P, L, H, K).transpose(1, 2), None, None),
    }[wrong]
    with pytest.raises(AssertionError):
        LayerCache(k=k, v=k, k_scale=k_scale, v_scale=v_scale)
