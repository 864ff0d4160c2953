"""Bias with GELU and bias with residual against float64.

Tolerance 1e-6 of the RMS in float32: two sums and an exponential, each rounded to a few 2^-24; otherwise one store.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import dispatch, linear_gelu, linear_residual
from mdinfer.kernels._triton import epilogue
from mdinfer.kernels._triton.launch import recorded
from tests.kernels.compare import Array, randn, rms_ratio, store_error, to_array

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (1, 2048), (3, 130), (17, 144), (15, 272), (2, 20, 64), (33, 4304), (16, 8)]


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter too, cut as on a GPU."""
    monkeypatch.setattr(epilogue, "INTERPRETER", epilogue.MANY)


def gelu_tanh(x: Array) -> Array:
    out: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return out


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_gelu(shape: tuple[int, ...], dtype: torch.dtype, overwrite: bool, device: torch.device) -> None:
    x, bias = randn(*shape, scale=2).to(device, dtype), randn(shape[-1], seed=1).to(device, dtype)
    want = gelu_tanh(to_array(x) + to_array(bias))
    before = x.clone()
    found = epilogue.bias_gelu(x, bias, overwrite)
    assert found.dtype == dtype and (found is x if overwrite else torch.equal(x, before))
    assert rms_ratio(found, want) < 1e-6 + store_error(dtype)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_residual(shape: tuple[int, ...], dtype: torch.dtype, overwrite: bool, device: torch.device) -> None:
    x, residual = (randn(*shape, seed=seed).to(device, dtype) for seed in range(2))
    bias = randn(shape[-1], seed=2).to(device, dtype)
    want = to_array(x) + to_array(bias) + to_array(residual)
    kept, before = residual.clone(), x.clone()
    found = epilogue.bias_residual(x, bias, residual, overwrite)
    assert found.dtype == dtype and (found is x if overwrite else torch.equal(x, before))
    assert torch.equal(residual, kept)
    assert rms_ratio(found, want) < 1e-6 + store_error(dtype)


@pytest.mark.parametrize("shape", [(1, 9, 144), (9, 144), (144,)], ids=str)
def test_residual_rows_repeat(shape: tuple[int, ...], device: torch.device) -> None:
    x, bias, residual = randn(5, 9, 144).to(device), randn(144, seed=1).to(device), randn(*shape, seed=2).to(device)
    want = to_array(x) + to_array(bias) + to_array(residual)
    assert rms_ratio(epilogue.bias_residual(x, bias, residual, False), want) < 1e-6


def test_tails_of_gelu(device: torch.device) -> None:
    """Where tanh is 1 - 1e-8 and beyond, the value itself or 0; large arguments overflow nothing."""
    x = torch.tensor([[-1e30, -1e4, -30.0, -8.0, -0.0, 0.0, 1e-30, 8.0, 30.0, 1e4, 1e30]], device=device)
    found = epilogue.bias_gelu(x, torch.zeros(x.shape[1], device=device), False)
    want = gelu_tanh(to_array(x).clip(-1e4, 1e4))
    assert np.allclose(to_array(found)[:, 1:-1], want[:, 1:-1], rtol=1e-6, atol=1e-12)
    assert found[0, 0] == 0 and found[0, -1] == x[0, -1]


def test_nan_stays_in_its_place(device: torch.device) -> None:
    x, bias, residual = randn(20, 24).to(device), randn(24, seed=1).to(device), randn(20, 24, seed=2).to(device)
    x[3, 5] = float("nan")
    for found in (epilogue.bias_gelu(x, bias, False), epilogue.bias_residual(x, bias, residual, False)):
        assert torch.equal(found.isnan(), x.isnan())


def test_no_rows(device: torch.device) -> None:
    x, bias = torch.empty(0, 64, device=device), torch.ones(64, device=device)
    assert epilogue.bias_gelu(x, bias, False).shape == epilogue.bias_residual(x, bias, x, True).shape == (0, 64)


@pytest.mark.parametrize("T", [1, 3, 17])
def test_products_take_their_epilogue(T: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch behind each product, and the inputs as they were."""
    monkeypatch.setattr(dispatch, "compiled", lambda _: True)
    x, weight, bias = (t.to(device) for t in (randn(T, 40), randn(72, 40, seed=1, scale=0.2), randn(72, seed=2)))
    residual = randn(T, 72, seed=3).to(device)
    kept = [t.clone() for t in (x, weight, bias, residual)]
    summed = to_array(x) @ to_array(weight).T + to_array(bias)
    with recorded() as launches:
        activated = linear_gelu(x, weight, bias)
        added = linear_residual(x, weight, bias, residual)
    assert [launch.name for launch in launches] == ["bias_gelu_kernel", "bias_residual_kernel"]
    assert rms_ratio(activated, gelu_tanh(summed)) < 2e-6
    assert rms_ratio(added, summed + to_array(residual)) < 2e-6
    assert all(torch.equal(now, then) for now, then in zip((x, weight, bias, residual), kept, strict=True))
