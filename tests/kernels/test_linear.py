"""The dense product at every number of rows that takes another way through it, against float64.

Tolerance 1e-6 of the RMS: sums of up to 512 float32 terms. bfloat16 rounds the result once, by 2^-9.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import linear
from tests.kernels.compare import randn, rms_ratio, to_array

ROWS = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 40]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (256, 512)], ids=["24x40", "256x512"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=["float32", "bfloat16"]
)
def test_against_float64(inputs: int, outputs: int, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    weight, offset = randn(outputs, inputs, seed=1).to(dtype), randn(outputs, seed=2).to(dtype)
    for rows in ROWS:
        x = randn(rows, inputs).to(dtype)
        found = linear(x, weight, offset if bias else None)
        assert (found.shape, found.dtype, found.is_contiguous()) == ((rows, outputs), dtype, True)
        want = to_array(x) @ to_array(weight).T + (to_array(offset) if bias else 0)
        if rows:
            assert rms_ratio(found, want) < tolerance


def test_more_than_two_dimensions() -> None:
    x, weight, bias = randn(2, 3, 24), randn(40, 24), randn(40)
    assert rms_ratio(linear(x, weight, bias), to_array(x) @ to_array(weight).T + to_array(bias)) < 1e-6


def test_part_of_a_larger_weight() -> None:
    """The head multiplies the first rows of its weight alone, in skills that choose among control ids."""
    x, weight, bias = randn(3, 24), randn(400, 24), randn(400)
    want = to_array(x) @ to_array(weight[:16]).T + to_array(bias[:16])
    assert rms_ratio(linear(x, weight[:16], bias[:16]), want) < 1e-6
