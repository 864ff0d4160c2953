"""Rows to e4m3 with a scale each: bit for bit what the torch body gives; behind bias and GELU, as near as may be."""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels._triton.quantise import bias_gelu_rows, quantise_rows
from mdinfer.kernels.epilogue import bias_gelu_rows_torch
from mdinfer.kernels.quantise import quantise_rows_torch
from tests.kernels.compare import assert_rounded_alike, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 2048), (17, 64), (3, 1), (5, 300), (2, 1024)], ids=str)
def test_quantise_rows(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    x = (randn(*shape) * torch.logspace(-4, 4, shape[0])[:, None]).to(device, dtype)
    values, scale = quantise_rows(x)
    want, want_scale = quantise_rows_torch(x)
    assert (values.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(scale, want_scale) and torch.equal(values.view(torch.uint8), want.view(torch.uint8))


def test_rows_out_of_the_ordinary(device: torch.device) -> None:
    """Zeros and the smallest numbers get scale 1; NaN and infinity come out in the scale of their own row."""
    x = randn(6, 40)
    x[0], x[1], x[2, 3], x[3, 7], x[4] = 0.0, 1e-38, float("nan"), float("inf"), -448.0
    values, scale = quantise_rows(x.to(device))
    assert scale[0] == 1 and scale[1] == 1 and scale[4] == 1
    assert scale.isfinite().tolist() == [True, True, False, False, True, True]
    assert scale[2].isnan() and not values[[0, 1, 4, 5]].float().isnan().any()
    assert (values[4].float() == -448).all()


def test_no_rows(device: torch.device) -> None:
    values, scale = quantise_rows(torch.empty(0, 64, device=device))
    assert values.shape == (0, 64) and scale.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8192), (17, 144), (3, 16), (5, 4304), (2, 1024)], ids=str)
def test_behind_bias_and_gelu(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    x, bias = randn(*shape, scale=2).to(device, dtype), randn(shape[1], seed=1).to(device, dtype)
    before = x.clone()
    assert_rounded_alike(bias_gelu_rows(x, bias), bias_gelu_rows_torch(x, bias))
    assert torch.equal(x, before)


def test_rows_of_zeros_and_nan_behind_gelu(device: torch.device) -> None:
    x = randn(3, 48)
    x[0], x[1, 5] = 0.0, float("nan")
    values, scale = bias_gelu_rows(x.to(device), torch.zeros(48, device=device))
    assert scale[0] == 1 and not values[0].float().any()
    assert scale.isfinite().tolist() == [True, False, True]


def test_no_rows_behind_gelu(device: torch.device) -> None:
    values, scale = bias_gelu_rows(torch.empty(0, 64, device=device), torch.ones(64, device=device))
    assert values.shape == (0, 64) and scale.shape == (0,)
