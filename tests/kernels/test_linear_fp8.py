"""The torch body of products with e4m3 weights against float64: of few rows, of many, and of what they stand for.

Tolerance 1e-6 of the RMS: sums of up to 512 float32 terms. In bfloat16 a CPU rounds the product before the scales, and
what they make of it, by 2^-9 each.

Against unrounded operands: an e4m3 value errs by at most half a step of three bits, uniform in it: 2^-4 / sqrt(3) of
itself at the most, 0.036. Weights and, of many rows, rows err independently: 0.036 and 0.051 of the result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer.kernels import (
    Float8Rows,
    fits_fp8,
    layer_norm,
    layer_norm_rows,
    linear_fp8,
    linear_gelu,
    linear_gelu_rows,
    linear_residual,
)
from mdinfer.kernels.linear_fp8 import FAST_TERMS, FP8, scaled_product
from mdinfer.kernels.quantise import FEW_ROWS, quantise_rows_torch
from tests.kernels.compare import Array, randn, rms_ratio, to_array

ROWS = [0, 1, 3, FEW_ROWS, FEW_ROWS + 1, 40]
SHAPES = [(16, 16), (48, 272), (512, 256)]


def kept(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise_rows_torch(randn(outputs, inputs, seed=1, scale=inputs**-0.5))


def multiplied_out(q: torch.Tensor, scale: torch.Tensor) -> Array:
    return to_array(q.float()) * to_array(scale)[:, None]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=["float32", "bfloat16"]
)
def test_against_float64(shape: tuple[int, int], bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    (weight, scale), offset = kept(*shape), randn(shape[0], seed=2).to(dtype)
    for rows in ROWS:
        x = randn(rows, shape[1]).to(dtype)
        found = linear_fp8(x, weight, scale, offset if bias else None)
        assert (found.shape, found.dtype, found.is_contiguous()) == ((rows, shape[0]), dtype, True)
        taken = to_array(x) if rows <= FEW_ROWS else multiplied_out(*quantise_rows_torch(x))
        want = taken @ multiplied_out(weight, scale).T + (to_array(offset) if bias else 0)
        if rows:
            assert rms_ratio(found, want) < tolerance


@pytest.mark.parametrize(("rows", "bound"), [(FEW_ROWS, 0.036), (FEW_ROWS + 1, 0.051)])
def test_near_what_was_not_rounded(rows: int, bound: float) -> None:
    x, weight = randn(rows, 512), randn(256, 512, seed=1, scale=512**-0.5)
    want = to_array(x) @ to_array(weight).T
    assert bound / 3 < rms_ratio(linear_fp8(x, *quantise_rows_torch(weight)), want) < bound


def test_more_than_two_dimensions_are_rows() -> None:
    x, (weight, scale), bias = randn(2, 9, 48), kept(32, 48), randn(32, seed=2)
    found = linear_fp8(x, weight, scale, bias)
    assert torch.equal(found, linear_fp8(x.flatten(0, 1), weight, scale, bias).view(2, 9, 32))
    assert found.shape == (2, 9, 32)


@pytest.mark.parametrize("T", [3, 40])
def test_products_with_an_epilogue(T: int) -> None:
    x, (weight, scale), bias, residual = randn(T, 48), kept(32, 48), randn(32, seed=2), randn(T, 32, seed=3)
    y = linear_fp8(x, weight, scale, bias)
    assert torch.equal(
        linear_gelu(x, weight, bias, scale), torch.nn.functional.gelu(y, approximate="tanh")
    ) and torch.equal(linear_residual(x, weight, bias, residual, scale), residual + y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3,), (FEW_ROWS + 1,), (2, 9)], ids=str)
def test_rows_rounded_where_they_are_made(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Few are as they were. Many: in float32 the same as rounded later; in bfloat16 without that rounding between."""
    x, (first, scale1), (second, scale2) = randn(*shape, 48).to(dtype), kept(64, 48), kept(32, 64)
    norm, norm_bias, bias = (randn(n, seed=n).to(dtype) for n in (48, 48, 64))
    h = layer_norm_rows(x, norm, norm_bias)
    inner = linear_gelu_rows(h, first, bias, scale1)
    residual, last_bias = randn(*shape, 32, seed=5).to(dtype), randn(32, seed=6).to(dtype)
    many = x.shape[:-1].numel() > FEW_ROWS
    assert isinstance(h, Float8Rows) == isinstance(inner, Float8Rows) == many
    apart = layer_norm(x, norm, norm_bias)
    y = linear_gelu(apart, first, bias, scale1)
    tolerance = 1e-6 if dtype == torch.float32 or not many else 0.051 * 2**0.5
    for found, want in (
        (linear_fp8(h, first, scale1), linear_fp8(apart, first, scale1)),
        (linear_fp8(inner, second, scale2), linear_fp8(y, second, scale2)),
        (
            linear_residual(inner, second, last_bias, residual, scale2),
            linear_residual(y, second, last_bias, residual, scale2),
        ),
    ):
        assert (found.shape, found.dtype) == (want.shape, dtype)
        assert rms_ratio(found, to_array(want)) < tolerance


def test_shapes_of_the_library() -> None:
    assert fits_fp8(16, 4304) and not fits_fp8(24, 64) and not fits_fp8(64, 24)
    with pytest.raises(AssertionError):
        linear_fp8(randn(1, 24), torch.empty(32, 24, dtype=FP8), torch.ones(32))


@pytest.mark.parametrize("K", [2048, FAST_TERMS + 16])
def test_what_the_library_is_asked_for(K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of K, columns of K, scales of two dimensions that lie densely, bfloat16: on meta, as on a GPU."""
    asked: dict[str, Any] = {}
    genuine = torch._scaled_mm

    def record(a: torch.Tensor, b: torch.Tensor, **rest: Any) -> torch.Tensor:
        asked.update(rest, a=a, b=b)
        return genuine(a, b, **rest)

    monkeypatch.setattr(torch, "_scaled_mm", record)
    meta = torch.device("meta")
    q, weight = (torch.empty(n, K, dtype=FP8, device=meta) for n in (33, 48))
    scales, bias = [torch.empty(n, device=meta) for n in (33, 48)], torch.empty(48, dtype=torch.bfloat16, device=meta)
    found = scaled_product(q, scales[0], weight, scales[1], bias, torch.bfloat16)
    assert (found.shape, found.dtype) == ((33, 48), torch.bfloat16)
    assert asked["a"].stride() == (K, 1) and asked["b"].shape == (K, 48) and asked["b"].stride() == (1, K)
    for name, shape in (("scale_a", (33, 1)), ("scale_b", (1, 48))):
        assert asked[name].shape == shape and asked[name].is_contiguous() and asked[name].dtype == torch.float32
    assert asked["use_fast_accum"] == (K == 2048) and asked["bias"] is bias
    with pytest.raises(AssertionError, match="bfloat16"):
        scaled_product(q, scales[0], weight, scales[1], None, torch.float32)
