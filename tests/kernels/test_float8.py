"""e4m3 weights converted by their bits: every number there is, and products with them."""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels.float8 import float8_values, linear_float8
from tests.kernels.compare import randn, rms_ratio, to_array

EVERY = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
NUMBERS = EVERY[~EVERY.float().isnan()]


def test_every_number_is_exact() -> None:
    found = float8_values(NUMBERS)
    assert len(found) == 254 and torch.equal(found.view(torch.int32), NUMBERS.float().view(torch.int32))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6], ids=str)
def test_every_number_in_a_product(size: float) -> None:
    """One number a row: in bfloat16 rounded twice, by 2^-9 each, and exact 0 below 2^-6 where libraries have it so."""
    x, scale = torch.tensor([[size]]).bfloat16(), torch.full((254,), 0.25)
    found = linear_float8(x, NUMBERS[:, None], scale)[0].double()
    exact = NUMBERS.double() * float(x) * 0.25
    right = (found - exact).abs() <= exact.abs() * 2**-8
    assert bool((right | ((found == 0) & (NUMBERS.double().abs() < 2**-6))).all())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)], ids=str)
@pytest.mark.parametrize("R", [0, 1, 4, 40])
@pytest.mark.parametrize("K", [1, 20, 64])
def test_products(K: int, R: int, dtype: torch.dtype, bound: float) -> None:
    """Float32: 64 terms, 2^-24 each. bfloat16: the product rounded before its scale and after it, 2^-9 each."""
    x, weight = randn(R, K).to(dtype), (randn(33, K, seed=1) * 60).to(torch.float8_e4m3fn)
    scale = randn(33, seed=2).abs() + 0.1
    found = linear_float8(x, weight, scale)
    assert found.dtype == dtype and found.shape == (R, 33)
    if R:
        assert rms_ratio(found, to_array(x) @ (to_array(weight.float()) * to_array(scale)[:, None]).T) < bound
