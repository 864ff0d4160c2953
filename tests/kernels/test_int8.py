"""Products with int8 weights against float64.

Numbers up to 127 are exact in bfloat16, and so are their products with x in float32; sums of 96 of them err by 96 *
2^-24 at most, relative to the sum of sizes, some 10 times the result's RMS. What is left is the result's rounding:
2^-9 at most in bfloat16. Where weights are converted first, the product is rounded before its scale and after it: 2^-8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer.kernels import int8
from mdinfer.kernels.int8 import dequantise, linear_int8
from tests.kernels.compare import randn, rms_ratio, to_array

BOUND = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}


def weights(N: int, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(N + K)
    q = torch.randint(-127, 128, (N, K), generator=draw, dtype=torch.int8)
    return q, (torch.rand(N, generator=draw) + 0.5).bfloat16()


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("K", [1, 20, 31, 40, 64, 96], ids=lambda K: f"K{K}")
@pytest.mark.parametrize("R", [0, 1, 3, 8, 9, 40], ids=lambda R: f"R{R}")
def test_against_the_twin(R: int, K: int, dtype: torch.dtype) -> None:
    x, (q, scale) = randn(R, K).to(dtype), weights(33, K)
    found = linear_int8(x, q, scale)
    assert found.dtype == dtype and found.shape == (R, 33)
    if R:
        assert rms_ratio(found, to_array(x) @ (to_array(q) * to_array(scale)[:, None]).T) < BOUND[dtype]


def test_rows_that_do_not_lie_together() -> None:
    x, (q, scale) = randn(3, 128).bfloat16(), weights(33, 64)
    assert torch.equal(linear_int8(x[:, ::2], q, scale), linear_int8(x[:, ::2].contiguous(), q, scale))


def test_which_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own for few rows of bfloat16 in whole vectors; without it all go the other way, to the same numbers."""
    seen = []

    def product(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return torch.zeros(len(x), 33, dtype=x.dtype)

    monkeypatch.setattr(int8, "_product", product)
    for dtype in BOUND:
        for R, K in ((1, 64), (8, 32), (9, 64), (1, 48)):
            linear_int8(randn(R, K).to(dtype), *weights(33, K))
    assert seen == [(1, 64), (8, 32)]
    x, (q, scale) = randn(2, 64).bfloat16(), weights(33, 64)
    monkeypatch.setattr(int8, "_product", None)
    assert rms_ratio(linear_int8(x, q, scale), to_array(x) @ to_array(dequantise(q, scale)).T) < BOUND[torch.bfloat16]
