"""Routing and experts against plain loops in float64.

Tolerance: two products of up to 64 terms, float32: 1e-6 of the output's RMS. In bfloat16 every product and the
activation are rounded by 2^-9, three times in a row: 1.5e-2. fp8 weights are exact in the twin too, so that their
products err like those of their activations' dtype.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import moe_experts, moe_route
from tests.kernels.compare import Array, randn, rms_ratio, to_array

D, E, INNER, A = 48, 6, 20, 2
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2}


def twin(x: Array, experts: Array, weights: Array, fc1: Array, fc2: Array) -> Array:
    out = np.zeros_like(x)
    for t in range(len(x)):
        for e, weight in zip(experts[t].astype(int), weights[t], strict=True):
            both = fc1[e] @ x[t]
            u, g = both[: len(both) // 2], both[len(both) // 2 :]
            a = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in u]) * (g + 1)
            out[t] += weight * (fc2[e] @ a)
    return out


def check(experts: torch.Tensor, *, dtype: torch.dtype = torch.float32, fp8: bool = False) -> None:
    T = len(experts)
    x = randn(T, D, seed=1).to(dtype)
    weights = torch.softmax(randn(T, experts.shape[1], seed=2), dim=-1)
    fc1, fc2 = randn(E, 2 * INNER, D, seed=3, scale=D**-0.5), randn(E, D, INNER, seed=4, scale=INNER**-0.5)
    scales: list[torch.Tensor | None] = [None, None]
    if fp8:
        scales = [randn(E, 2 * INNER, seed=5).abs() + 0.1, randn(E, D, seed=6).abs() + 0.1]
        stored = [fc1.to(torch.float8_e4m3fn), fc2.to(torch.float8_e4m3fn)]
        exact = [
            to_array(w.float()) * to_array(s)[..., None] for w, s in zip(stored, scales, strict=True) if s is not None
        ]
    else:
        stored = [fc1.to(dtype), fc2.to(dtype)]
        exact = [to_array(w) for w in stored]
    found = moe_experts(x, experts, weights, stored[0], stored[1], scales[0], scales[1])
    assert found.dtype == dtype
    if T:
        want = twin(to_array(x), to_array(experts), to_array(weights), exact[0], exact[1])
        assert rms_ratio(found, want) < TOLERANCE[dtype]
    else:
        assert found.shape == (0, D)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("fp8", [False, True], ids=["plain", "fp8"])
@pytest.mark.parametrize("T", [0, 1, 3, 17])
def test_experts_against_the_twin(T: int, fp8: bool, dtype: torch.dtype) -> None:
    experts = (
        torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(t))[:A] for t in range(T)])
        if T
        else torch.zeros(0, A, dtype=torch.int64)
    )
    check(experts, dtype=dtype, fp8=fp8)


@pytest.mark.parametrize("T", [1, 3, 17])
def test_all_tokens_on_one_expert(T: int) -> None:
    check(torch.full((T, 1), 3))


def test_experts_nobody_takes_are_not_read() -> None:
    """Their weights may be anything: here NaN."""
    x, fc1, fc2 = randn(5, D), randn(E, 2 * INNER, D), randn(E, D, INNER)
    fc1[1], fc2[1] = float("nan"), float("nan")
    for rows in (5, 1):
        out = moe_experts(x[:rows], torch.tensor([[0, 2]] * rows), torch.full((rows, 2), 0.5), fc1, fc2)
        assert out.isfinite().all()


def test_a_token_is_the_same_alone_and_among_others() -> None:
    experts = torch.tensor([[0, 1], [1, 2], [0, 1], [5, 0]])
    x, weights = randn(4, D), torch.softmax(randn(4, A), dim=-1)
    fc1, fc2 = randn(E, 2 * INNER, D, scale=D**-0.5), randn(E, D, INNER)
    together = moe_experts(x, experts, weights, fc1, fc2)
    for t in range(4):
        alone = moe_experts(x[t : t + 1], experts[t : t + 1], weights[t : t + 1], fc1, fc2)
        assert rms_ratio(alone, to_array(together[t : t + 1])) < TOLERANCE[torch.float32]


def test_route_takes_the_largest_and_softmax_over_those() -> None:
    logits = randn(40, 64)
    experts, weights = moe_route(logits, 8)
    assert (experts.dtype, weights.dtype) == (torch.int64, torch.float32)
    for row, mine, shares in zip(to_array(logits), experts.tolist(), weights.tolist(), strict=True):
        order = sorted(range(64), key=lambda e: (-row[e], e))[:8]
        assert mine == order
        odds = [math.exp(row[e] - row[order[0]]) for e in order]
        assert shares == pytest.approx([o / sum(odds) for o in odds], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], [0, 1, 2]),
        ([0.0, 2.0, 1.0, 2.0, 1.0], [1, 3, 2]),
        ([-1.0, -1.0, 5.0, -1.0, -1.0], [2, 0, 1]),
        ([0.0, -0.0, 0.0, -0.0, 1.0], [4, 0, 1]),
    ],
    ids=["all", "two_pairs", "below_the_first", "signed_zero"],
)
def test_ties_go_to_the_lower_expert(logits: list[float], expected: list[int], dtype: torch.dtype) -> None:
    for rows in (1, 7):
        experts, _ = moe_route(torch.tensor([logits] * rows, dtype=dtype), 3)
        assert experts.tolist() == [expected] * rows


def test_ties_among_many_experts() -> None:
    """A sort of few values can be stable by chance: 64 experts, a third of them equal."""
    logits = torch.zeros(20, 64)
    logits[:, ::3] = 1.0
    assert moe_route(logits, 8)[0].tolist() == [[0, 3, 6, 9, 12, 15, 18, 21]] * 20
