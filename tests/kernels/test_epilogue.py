"""Products with their epilogues against float64; the torch bodies are also what a CPU runs.

Tolerance 1e-6 of the RMS: float32 sums of 24 terms. bfloat16 results are rounded once, the product on its way to
GELU or the sum once more: 2^-8 in all.
"""

from __future__ import annotations

import math

import pytest
import torch

from mdinfer.kernels import bias_gelu, bias_residual, dispatch, epilogue, linear_gelu, linear_residual
from tests.kernels.compare import Array, randn, rms_ratio, to_array

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
DTYPES = list(TOLERANCE)
SHAPES = [(5, 24), (2, 3, 24), (1, 24), (20, 24)]


def gelu_tanh(x: Array) -> Array:
    flat = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.ravel().tolist()]
    return torch.tensor(flat, dtype=torch.float64).numpy().reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias, residual = (t.to(dtype) for t in (randn(*shape), randn(24, seed=1), randn(*shape, seed=2)))
    summed = to_array(x) + to_array(bias)
    assert rms_ratio(bias_gelu(x, bias), gelu_tanh(summed)) < TOLERANCE[dtype]
    assert rms_ratio(bias_residual(x, bias, residual), summed + to_array(residual)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = (t.to(dtype) for t in (randn(*shape), randn(7, 24, seed=1), randn(7, seed=2)))
    residual = randn(*shape[:-1], 7, seed=3).to(dtype)
    summed = to_array(x) @ to_array(weight).T + to_array(bias)
    assert rms_ratio(linear_gelu(x, weight, bias), gelu_tanh(summed)) < TOLERANCE[dtype]
    assert rms_ratio(linear_residual(x, weight, bias, residual), summed + to_array(residual)) < TOLERANCE[dtype]


@pytest.mark.parametrize("leading", [(), (1,)], ids=str)
def test_rows_of_a_smaller_residual_repeat(leading: tuple[int, ...]) -> None:
    x, weight, bias, residual = randn(4, 3, 6), randn(5, 6), randn(5), randn(*leading, 3, 5, seed=1)
    want = to_array(x) @ to_array(weight).T + to_array(bias) + to_array(residual)
    assert rms_ratio(linear_residual(x, weight, bias, residual), want) < 1e-6
    assert rms_ratio(bias_residual(x @ weight.T, bias, residual), want) < 1e-6


@pytest.mark.parametrize("shape", [(4, 1, 5), (4, 3, 1), (2, 5), (3, 4, 5)], ids=str)
def test_other_residuals_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        bias_residual(randn(4, 3, 5), randn(5), randn(*shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the GELU of this operation is erf on a CPU")
def test_gelu_in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways that a GPU may take agree; which one it takes is a matter of speed."""
    x, weight, bias = (t.cuda().bfloat16() for t in (randn(3, 40, 64), randn(128, 64, seed=1), randn(128, seed=2)))
    want = gelu_tanh(to_array(x) @ to_array(weight).T + to_array(bias))
    for inside in (False, True):
        monkeypatch.setattr(epilogue, "GELU_IN_PRODUCT", inside)
        assert dispatch.compiled(x)
        assert rms_ratio(linear_gelu(x, weight, bias), want) < TOLERANCE[torch.bfloat16]
