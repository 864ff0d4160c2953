"""float8 rows: the error bound, and rows that have no ordinary scale."""

from __future__ import annotations

import pytest
import torch

from mdinfer.checkpoint import dequantise_rows, quantise_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0], ids=lambda spread: f"spread{spread}")
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (4, 32, 64)], ids=str)
def test_error_bound(shape: tuple[int, ...], spread: float, dtype: torch.dtype) -> None:
    """e4m3 has 3 mantissa bits, so rounding is off by at most 2^-4 of a value; below its smallest normal,
    2^-6, steps are 2^-9 and rounding is off by at most 2^-10 (times the scale). 2^-22 is for the division
    by the scale, the product with it, and the scale's own rounding, all in float32."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(spread).exp()
    weight = values.to(dtype)
    quantised, scale = quantise_rows(weight)
    assert (quantised.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (quantised.shape, scale.shape) == (weight.shape, weight.shape[:-1])
    exact = weight.double()
    error = (dequantise_rows(quantised, scale).double() - exact).abs()
    bound = torch.maximum(exact.abs() * 2**-4, scale.double().unsqueeze(-1) * 2**-10) + exact.abs() * 2**-22
    assert bool((error <= bound).all())
    peak = exact.abs().amax(-1)
    assert torch.allclose(dequantise_rows(quantised, scale).double().abs().amax(-1), peak, rtol=2**-22, atol=0)


def test_what_float8_holds_comes_back_exactly() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = every.float()[every.float().isfinite()].unsqueeze(0) * 0.25
    quantised, scale = quantise_rows(values)
    assert scale.tolist() == [0.25]
    assert torch.equal(dequantise_rows(quantised, scale), values)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-36], ids=str)
def test_a_row_without_a_normal_scale_gets_one(size: float) -> None:
    quantised, scale = quantise_rows(torch.tensor([[size, -size], [1.0, 2.0]]))
    assert scale[0] == 1
    assert quantised[0].float().abs().max() == 0
    assert scale[1] == pytest.approx(2 / 448)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_a_bad_value_makes_a_bad_scale(value: float) -> None:
    _, scale = quantise_rows(torch.tensor([[1.0, value], [1.0, 2.0]]))
    assert scale.isfinite().tolist() == [False, True]


def test_dequantise_is_scale_times_value_in_float32() -> None:
    values = torch.tensor([[1.0, -448.0], [0.001953125, 3.5]]).to(torch.float8_e4m3fn)
    scale = torch.tensor([0.1, 3e-5])
    expected = torch.tensor([[0.1, -44.8], [0.001953125 * 3e-5, 3.5 * 3e-5]])
    assert torch.allclose(dequantise_rows(values, scale), expected, rtol=2**-23, atol=0)
