"""LayerNorm kernels against float64.

Tolerance: float32 moments of up to 4304 numbers err by a few 2^-24 of a value of size 1: 1e-6 of the RMS; in other
dtypes the store's rounding is added, once for the sum, whose error the normalisation passes on, once for the result.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels._triton import norm
from mdinfer.kernels.norm import layer_norm_rows_torch
from tests.kernels.compare import Array, assert_rounded_alike, randn, rms_ratio, store_error, to_array

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 8), (3, 1), (3, 130), (17, 144), (2, 3, 64), (1, 1152), (3, 2048), (2, 4304)]


def twin(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    out: Array = centred / ((centred**2).mean(-1, keepdims=True) + EPS) ** 0.5 * weight + bias
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = (t.to(device, dtype) for t in (randn(*shape), randn(shape[-1], seed=1), randn(shape[-1], seed=2)))
    found = norm.layer_norm(x, weight, bias, EPS)
    assert found.dtype == dtype
    assert rms_ratio(found, twin(to_array(x), to_array(weight), to_array(bias))) < 1e-6 + store_error(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x, a, b = (randn(*shape, seed=seed).to(device, dtype) for seed in range(3))
    weight, bias = randn(shape[-1], seed=3).to(device, dtype), randn(shape[-1], seed=4).to(device, dtype)
    total, found = norm.add_layer_norm(x, a, b, weight, bias, EPS)
    assert total.dtype == found.dtype == dtype
    summed = to_array(x) + to_array(a) + to_array(b)
    assert rms_ratio(total, summed) < 1e-7 + store_error(dtype)
    want = twin(to_array(total), to_array(weight), to_array(bias))
    assert rms_ratio(found, want) < 1e-6 + store_error(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 2 and shape[1] > 1], ids=str)
def test_layer_norm_rows(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Each row has a scale of its own; rows of any size come out alike."""
    x = (randn(*shape) * torch.logspace(-1, 2, shape[0])[:, None]).to(device, dtype)
    weight, bias = randn(shape[1], seed=1).to(device, dtype), randn(shape[1], seed=2).to(device, dtype)
    assert_rounded_alike(norm.layer_norm_rows(x, weight, bias, EPS), layer_norm_rows_torch(x, weight, bias, EPS))


def test_rows_without_variance_and_with_nan_in_e4m3(device: torch.device) -> None:
    x, weight, bias = randn(3, 40), torch.ones(40), torch.zeros(40)
    x[0], x[1, 3] = 1.0, float("nan")
    q, scale = norm.layer_norm_rows(x.to(device), weight.to(device), bias.to(device), EPS)
    assert scale[0] == 1 and not q[0].float().any()
    assert scale.isfinite().tolist() == [True, False, True]


def test_low_variance_and_large_mean(device: torch.device) -> None:
    """Moments are taken of what is left after the mean: an offset of 100 costs 100 * 2^-24, not 100^2."""
    x = (randn(5, 1152, scale=0.1) + 100).to(device)
    weight, bias = torch.ones(1152, device=device), torch.zeros(1152, device=device)
    found = norm.layer_norm(x, weight, bias, EPS)
    assert rms_ratio(found, twin(to_array(x), to_array(weight), to_array(bias))) < 1e-4


def test_no_rows(device: torch.device) -> None:
    x, weight = torch.empty(0, 64, device=device), torch.ones(64, device=device)
    assert norm.layer_norm(x, weight, weight, EPS).shape == (0, 64)
    assert [t.shape for t in norm.layer_norm_rows(x, weight, weight, EPS)] == [(0, 64), (0,)]
    assert [t.shape for t in norm.add_layer_norm(x, x, x, weight, weight, EPS)] == [(0, 64), (0, 64)]
