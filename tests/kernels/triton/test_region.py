"""Region heads against float64.

A bin is right if its float64 logit is within 1e-5 of the largest in float32, 0.03 in 16 bits: there the normalised
hidden state is rounded to 2^-9 of itself (2^-8 where it is cut off), and a logit sums D such errors at random, of
weights of D^-1/2. The value of the bin is exact to float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mdinfer.kernels import RegionHeads, TokenKind
from mdinfer.kernels._triton import region
from mdinfer.kernels.region import region_values_torch
from tests.kernels.compare import Array, randn, to_array

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
COORD, SIZE, TEXT, IMAGE = TokenKind.COORD, TokenKind.SIZE, TokenKind.TEXT, TokenKind.IMAGE


def make_heads(D: int, coord: int, size: int, device: torch.device, dtype: torch.dtype) -> RegionHeads:
    shapes = ((D,), (D,), (coord, D), (coord,), (2 * size, D), (2 * size,))
    scales = (1.0, 1.0, D**-0.5, 0.1, D**-0.5, 0.1)
    tensors = [
        randn(*shape, seed=seed, scale=scale).to(device, dtype)
        for seed, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]
    return RegionHeads(**dict(zip(RegionHeads.__dataclass_fields__, tensors, strict=True)))


def logits_twin(hidden: Array, heads: RegionHeads, head: str) -> Array:
    centred = hidden - hidden.mean(-1, keepdims=True)
    h = centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5
    h = h * to_array(heads.norm_weight) + to_array(heads.norm_bias)
    out: Array = h @ to_array(getattr(heads, f"{head}_weight")).T + to_array(getattr(heads, f"{head}_bias"))
    return out


def assert_likeliest(value: float, values: Array, logits: Array, tolerance: float) -> None:
    near = np.abs(values / value - 1) < 1e-6 if value else values == 0
    assert near.any(), value
    assert logits[near].max() >= logits.max() - tolerance, (value, logits[near], logits.max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("D", "coord", "size"), [(128, 1024, 256), (48, 16, 16), (144, 100, 33)], ids=lambda size: str(size)
)
@pytest.mark.parametrize("B", [1, 3, 17])
def test_against_the_twin(B: int, D: int, coord: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    heads = make_heads(D, coord, size, device, dtype)
    kinds = [(SIZE, COORD, TEXT, COORD, IMAGE)[i % 5] for i in range(B)]
    hidden = randn(B, D, seed=9).to(device, dtype)
    found = region.region_values(hidden, torch.tensor(kinds, device=device), heads)
    assert found.shape == (B, 2)
    assert found.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    coords = logits_twin(to_array(hidden), heads, "coord")
    sizes = logits_twin(to_array(hidden), heads, "size").reshape(B, 2, size)
    for i, (kind, row) in enumerate(zip(kinds, found.tolist(), strict=True)):
        if kind == COORD:
            assert row[1] == 0
            assert_likeliest(row[0], np.arange(coord) / coord, coords[i], tolerance)
        elif kind == SIZE:
            for j in (0, 1):
                assert_likeliest(row[j], 2.0 ** (10 * np.arange(size) / (size - 1) - 10), sizes[i, j], tolerance)
        else:
            assert row == [0, 0]


def test_more_rows_than_a_block(device: torch.device) -> None:
    """Blocks of 16 rows with none, one or all of them wanted."""
    B, D = 50, 64
    heads = make_heads(D, 40, 40, device, torch.float32)
    kinds = [TEXT] * 16 + [COORD] * 16 + [TEXT, SIZE] + [TEXT] * 14 + [SIZE, COORD]
    hidden = randn(B, D, seed=9).to(device)
    found = region.region_values(hidden, torch.tensor(kinds, device=device), heads).tolist()
    coords = logits_twin(to_array(hidden), heads, "coord")
    for i, kind in enumerate(kinds):
        if kind == COORD:
            assert_likeliest(found[i][0], np.arange(40) / 40, coords[i], 1e-5)
        assert (found[i] == [0, 0]) == (kind == TEXT)


@pytest.mark.parametrize("bins", [7, 16, 40])
def test_a_tie_goes_to_the_lower_bin(bins: int, device: torch.device) -> None:
    """Weights of zero: the bias decides, in one tile and across tiles; all equal gives bin 0."""
    D = 32
    zeros = torch.zeros(2 * bins, D)
    bias = torch.zeros(2 * bins)
    bias[[3, bins - 1]] = 1.0
    heads = RegionHeads(
        norm_weight=torch.ones(D, device=device),
        norm_bias=torch.zeros(D, device=device),
        coord_weight=zeros[:bins].to(device),
        coord_bias=bias[:bins].to(device),
        size_weight=zeros.to(device),
        size_bias=bias.to(device),
    )
    found = region.region_values(randn(2, D).to(device), torch.tensor([COORD, SIZE], device=device), heads).tolist()
    assert found[0][0] == pytest.approx(3 / bins)
    assert found[1] == pytest.approx([2 ** (30 / (bins - 1) - 10), 2**-10])


def test_every_bin_has_its_value(device: torch.device) -> None:
    """64 rows that each prefer a bin of their own."""
    bins = D = 64
    heads = RegionHeads(
        norm_weight=torch.ones(D, device=device),
        norm_bias=torch.zeros(D, device=device),
        coord_weight=torch.eye(bins, device=device),
        coord_bias=torch.zeros(bins, device=device),
        size_weight=torch.cat((torch.eye(bins), torch.eye(bins).flip(0))).to(device),
        size_bias=torch.zeros(2 * bins, device=device),
    )
    hidden = torch.eye(bins, device=device)
    coords = region.region_values(hidden, torch.full((bins,), int(COORD), device=device), heads)
    assert coords[:, 0].tolist() == [i / bins for i in range(bins)]
    sizes = region.region_values(hidden, torch.full((bins,), int(SIZE), device=device), heads)
    want = torch.tensor([2.0 ** (10 * i / (bins - 1) - 10) for i in range(bins)])
    assert ((sizes[:, 0].cpu() - want).abs() / want).max() < 1e-6
    assert torch.equal(sizes[:, 1], sizes[:, 0].flip(0))
    assert sizes[-1, 0] == 1


def test_a_row_that_is_no_number_harms_no_other(device: torch.device) -> None:
    heads = make_heads(64, 40, 40, device, torch.float32)
    hidden, kinds = randn(5, 64, seed=9), torch.tensor([COORD, COORD, SIZE, SIZE, TEXT], device=device)
    want = region.region_values(hidden.to(device), kinds, heads)
    hidden[[1, 2, 4], 7] = float("nan")
    found = region.region_values(hidden.to(device), kinds, heads)
    assert torch.equal(found[[0, 3, 4]], want[[0, 3, 4]])
    assert found[1, 0].isnan()
    assert found[2].isnan().all()


def test_no_rows(device: torch.device) -> None:
    heads = make_heads(64, 40, 40, device, torch.float32)
    kinds = torch.empty(0, dtype=torch.int64, device=device)
    assert region.region_values(torch.empty(0, 64, device=device), kinds, heads).shape == (0, 2)


@pytest.mark.parametrize("body", [region.region_values, region_values_torch], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_are_compared_before_any_rounding(
    dtype: torch.dtype, body: Callable[..., torch.Tensor], device: torch.device
) -> None:
    """Bin i gets 8 + i / 1024 as the sum of two products: in 16 bits most are equal, and the first of those would win.

    The normalised row is the LayerNorm's bias, so that it is the same whoever rounds it.
    """
    D, bins = 32, 20
    weight = torch.zeros(2 * bins, D)
    weight[:, 0] = 8
    weight[:, 1] = torch.cat((torch.arange(bins), torch.arange(bins).flip(0))) / 1024
    heads = RegionHeads(
        norm_weight=torch.zeros(D, device=device, dtype=dtype),
        norm_bias=torch.ones(D, device=device, dtype=dtype),
        coord_weight=weight[:bins].to(device, dtype),
        coord_bias=torch.zeros(bins, device=device, dtype=dtype),
        size_weight=weight.to(device, dtype),
        size_bias=torch.zeros(2 * bins, device=device, dtype=dtype),
    )
    found = body(randn(2, D).to(device, dtype), torch.tensor([COORD, SIZE], device=device), heads).tolist()
    assert found[0][0] == pytest.approx((bins - 1) / bins)
    assert found[1] == pytest.approx([1.0, 2**-10])
