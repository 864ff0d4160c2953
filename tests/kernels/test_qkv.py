"""Temperatures, RoPE and the write into pages, against plain loops in float64.

Tolerance: each value is a few float32 products and a sine of an angle that is exact to 2^-24 of its table: 1e-6 of
the RMS. Position terms take a logarithm of up to 32768: still 1e-6. In bfloat16 the product with Wq runs on inputs
rounded by 2^-9 and q is rounded once more: 1e-2.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from mdinfer.kernels import LayerCache, TokenPlaces, qkv_epilogue, rope_table
from tests.kernels.attention_twin import FP8
from tests.kernels.qkv_twin import THETA
from tests.kernels.qkv_twin import run as run_body

run = partial(run_body, qkv_epilogue)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(("H", "K", "L"), [(2, 64, 4), (1, 8, 1), (3, 12, 5)], ids=["2x64", "1x8", "3x12"])
def test_against_the_twin(H: int, K: int, L: int, dtype: torch.dtype, tolerance: float, biased: bool) -> None:
    assert max(run(H, K, L, dtype=dtype, biased=biased).values()) < tolerance


def test_keys_and_values_in_fp8() -> None:
    """A row's numbers are rounded by at most 2^-4 of their size, those below 2^-6 of the largest's 448th by less.

    Uniformly spread within a step that is 1/8 to 1/16 of the number, they err by 2^-4 / sqrt(3) at most: 0.036.
    """
    found = run(2, 64, 4, stored=FP8)
    assert found["q"] < 1e-6
    assert 0.01 < found["k"] < 0.036
    assert 0.01 < found["v"] < 0.036


def test_tokens_without_a_page_are_written_nowhere() -> None:
    assert max(run(2, 64, 4, nowhere=(0, 3)).values()) < 1e-6


def test_the_rope_table_is_rounded_once() -> None:
    table = rope_table(5000, 64, "cpu")
    assert table.shape == (5000, 2, 16)
    assert table.dtype == torch.float32
    for p in (0, 1, 777, 4999):
        for i in (0, 7, 15):
            angle = p * THETA ** (-i / 16)
            assert table[p, 0, i].item() == pytest.approx(math.cos(angle), abs=6e-8)
            assert table[p, 1, i].item() == pytest.approx(math.sin(angle), abs=6e-8)


def test_positions_above_256_are_told_apart_in_bfloat16() -> None:
    """ln(t + 1) is float32 whatever the model's dtype: in bfloat16 300 and 301 would be one position."""
    caches, zero = torch.zeros(2, 1, 1, 2, 8, dtype=torch.bfloat16), torch.tensor([0])
    taus = [
        qkv_epilogue(
            torch.ones(1, 24, dtype=torch.bfloat16),
            torch.zeros(2, 24, dtype=torch.bfloat16),
            torch.tensor([-1.0]),
            TokenPlaces.of(torch.tensor([p]), zero, zero, rope_table(1024, 8, "cpu")),
            LayerCache(k=caches[0], v=caches[1]),
        )
        for p in (256, 1023)
    ]
    expected = [0.5 + 1 / (1 + math.exp(math.log(p + 1))) for p in (256, 1023)]
    for q, want in zip(taus, expected, strict=True):
        assert q[0, 0, -1].item() == pytest.approx(want, abs=2**-9)
