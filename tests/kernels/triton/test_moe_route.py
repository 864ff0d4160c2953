"""Routing and the order of rows against loops.

Experts, counts, order and tiles are whole numbers and have to be equal. Weights are quotients of sums of up to 64
exponentials in float32: 1e-6 of their RMS.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import moe_route
from mdinfer.kernels._triton.moe_order import expert_order
from mdinfer.kernels._triton.moe_route import block_tokens
from mdinfer.kernels._triton.moe_route import moe_route as compiled_route
from tests.kernels.compare import randn, rms_ratio
from tests.kernels.moe_twin import route_twin

SIZES = [(1, 64, 8), (3, 8, 2), (17, 64, 8), (65, 10, 3), (7, 1, 1), (5, 6, 6), (130, 64, 1), (4, 33, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("T", "E", "A"), SIZES, ids=str)
def test_route(T: int, E: int, A: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
    logits = randn(T, E).to(device, dtype)
    added = randn(E, seed=1).to(device) if bias else None
    experts, weights, _ = compiled_route(logits, A, added)
    assert (experts.dtype, weights.dtype) == (torch.int32, torch.float32)
    want, shares = route_twin(logits.float() if added is None else logits.float() + added, A)
    assert experts.tolist() == want
    assert rms_ratio(weights, np.array(shares)) < 1e-6


@pytest.mark.parametrize("T", [1, 7, 17])
@pytest.mark.parametrize(
    "row",
    [
        [1.0] * 64,
        [float(e % 3 == 0) for e in range(64)],
        [-0.0, 0.0] * 32,
        [-2.0, -1.0, -2.0, math.inf, -math.inf] * 12 + [-math.inf] * 4,
        [-math.inf] * 63 + [1.0],
    ],
    ids=["all", "thirds", "signed_zeros", "infinities", "one_left"],
)
def test_ties_go_to_the_lower_expert(row: list[float], T: int, device: torch.device) -> None:
    logits = torch.tensor([row] * T, device=device)
    assert compiled_route(logits, 8, None)[0].tolist() == route_twin_with_infinities(row, 8) * T


def route_twin_with_infinities(row: list[float], A: int) -> list[list[int]]:
    return [sorted(range(len(row)), key=lambda e: (-row[e], e))[:A]]


@pytest.mark.parametrize("T", [3, 17])
def test_nan_stays_in_its_row(T: int, device: torch.device) -> None:
    logits = randn(T, 64).to(device)
    logits[1, 7], logits[2] = -math.nan, math.nan
    experts, weights, _ = compiled_route(logits, 8, None)
    assert weights.isnan().all(dim=1).tolist() == [t in (1, 2) for t in range(T)]
    assert not weights[0].isnan().any() and experts[1, 0] == 7 and experts[2].tolist() == list(range(8))
    assert all(len(set(row)) == 8 and min(row) >= 0 and max(row) < 64 for row in experts.tolist())
    whole = moe_route(logits.cpu(), 8)
    assert torch.equal(experts.long().cpu(), whole.experts)


def test_logits_may_be_a_part_of_a_wider_row(device: torch.device) -> None:
    wide = randn(5, 100).to(device)
    assert compiled_route(wide[:, 3:35], 4, None)[0].tolist() == route_twin(wide[:, 3:35], 4)[0]


def skewed(T: int, E: int, kind: str) -> torch.Tensor:
    logits = randn(T, E)
    if kind == "one_takes_all":
        logits[:, E // 2] += 1e6
    elif kind == "few":
        logits[:, 3:] -= 1e6
    return logits


@pytest.mark.parametrize("kind", ["random", "one_takes_all", "few"])
@pytest.mark.parametrize("BLOCK_M", [16, 32])
@pytest.mark.parametrize(("T", "E", "A"), [(17, 64, 8), (5, 8, 2), (70, 5, 3), (1100, 6, 1), (9, 3, 3)], ids=str)
def test_rows_and_tiles(T: int, E: int, A: int, BLOCK_M: int, kind: str, device: torch.device) -> None:
    experts, _, counts = compiled_route(skewed(T, E, kind).to(device), A, None)
    assert counts is not None
    block = block_tokens(T)
    blocks = [experts[t : t + block].flatten().cpu().bincount(minlength=E).tolist() for t in range(0, T, block)]
    assert counts.tolist() == blocks
    order = expert_order(experts, counts, BLOCK_M)
    flat = experts.flatten().cpu()
    assert order.pair.tolist() == torch.argsort(flat, stable=True).tolist()
    want, start = [], 0
    for e, count in enumerate(flat.bincount(minlength=E).tolist()):
        want += [[e, start + i, min(BLOCK_M, count - i)] for i in range(0, count, BLOCK_M)]
        start += count
    found = order.tiles.T.tolist()
    assert found[: len(want)] == want and all(rows == 0 for _, _, rows in found[len(want) :])


def test_no_tokens(device: torch.device) -> None:
    experts, weights, counts = compiled_route(torch.empty(0, 64, device=device), 8, None)
    assert experts.shape == weights.shape == (0, 8) and counts is None
