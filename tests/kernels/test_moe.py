"""The torch bodies of routing and experts against plain loops in float64.

Tolerance: two products of up to 64 terms, float32: 1e-6 of the output's RMS. In bfloat16 every product and the
activation are rounded by 2^-9, three times in a row: 1.5e-2. fp8 weights are exact in the twin too, so that their
products err like those of their activations' dtype. fp8 activations are rounded by up to 2^-4 of their size, by
0.29 * 2^-3.5 = 2.6e-2 on average, once before each of the two products: 4e-2, and as much again for u * g: 8e-2.
int4 weights are rounded to the activations' dtype, by 2^-9 at most: in bfloat16 two roundings more. int8 weights are
exact in bfloat16. The fp8 path's powers of two change nothing but numbers too small to count.
"""

from __future__ import annotations

import math

import pytest
import torch

from mdinfer.kernels import ExpertWeights, Routing, moe_experts, moe_route
from tests.kernels.compare import randn, rms_ratio, to_array
from tests.kernels.moe_twin import expert_weights, experts_twin, route_twin

D, E, INNER, A = 48, 6, 20, 2
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2}


def check(
    experts: torch.Tensor, *, dtype: torch.dtype = torch.float32, kind: str = "plain", dim: int = D, inner: int = INNER
) -> None:
    x = randn(len(experts), dim, seed=1).to(dtype)
    routing = Routing(experts=experts, weights=torch.softmax(randn(*experts.shape, seed=2), dim=-1))
    weights = expert_weights(E, dim, inner, dtype, fp8=kind == "fp8", int4=kind == "int4", int8=kind == "int8")
    found = moe_experts(x, routing, weights)
    assert found.dtype == dtype
    if len(experts):
        assert rms_ratio(found, experts_twin(x, routing, weights)) < TOLERANCE[dtype]
    else:
        assert found.shape == (0, dim)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["plain", "fp8", "int8", "int4"])
@pytest.mark.parametrize("T", [0, 1, 3, 17])
def test_experts_against_the_twin(T: int, kind: str, dtype: torch.dtype) -> None:
    check(moe_route(randn(T, E, seed=T), A).experts, dtype=dtype, kind=kind)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("T", [1, 3, 80])
def test_experts_of_whole_vectors(T: int, kind: str) -> None:
    """Sizes at which a CPU takes int8 weights as they are; 80 tokens give some expert more rows than that is for."""
    check(moe_route(randn(T, E, seed=T), A).experts, dtype=torch.bfloat16, kind=kind, dim=64, inner=96)


@pytest.mark.parametrize("T", [1, 3, 17])
def test_all_tokens_on_one_expert(T: int) -> None:
    check(torch.full((T, 1), 3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fp8_activations_of_many_tokens(dtype: torch.dtype) -> None:
    x, routing, weights = (
        randn(17, D).to(dtype),
        moe_route(randn(17, E), A),
        expert_weights(E, D, INNER, dtype, fp8=True),
    )
    found, plain = moe_experts(x, routing, weights, "fp8"), moe_experts(x, routing, weights)
    assert rms_ratio(found, to_array(plain)) > 1e-2 and rms_ratio(found, experts_twin(x, routing, weights)) < 8e-2
    few = Routing(experts=routing.experts[:3], weights=routing.weights[:3])
    assert torch.equal(moe_experts(x[:3], few, weights, "fp8"), moe_experts(x[:3], few, weights))


def test_experts_nobody_takes_are_not_read() -> None:
    """Their weights may be anything: here NaN."""
    x, fc1, fc2 = randn(5, D), randn(E, 2 * INNER, D), randn(E, D, INNER)
    fc1[1], fc2[1] = float("nan"), float("nan")
    for rows in (5, 1):
        routing = Routing(experts=torch.tensor([[0, 2]] * rows), weights=torch.full((rows, 2), 0.5))
        assert moe_experts(x[:rows], routing, ExpertWeights(fc1=fc1, fc2=fc2)).isfinite().all()


def test_a_token_is_the_same_alone_and_among_others() -> None:
    experts = torch.tensor([[0, 1], [1, 2], [0, 1], [5, 0]])
    x, shares = randn(4, D), torch.softmax(randn(4, A), dim=-1)
    weights = expert_weights(E, D, INNER, torch.float32)
    together = moe_experts(x, Routing(experts=experts, weights=shares), weights)
    for t in range(4):
        alone = moe_experts(x[t : t + 1], Routing(experts=experts[t : t + 1], weights=shares[t : t + 1]), weights)
        assert rms_ratio(alone, to_array(together[t : t + 1])) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_route_takes_the_largest_and_softmax_over_those(bias: bool) -> None:
    logits, added = randn(40, 64), randn(64, seed=1) if bias else None
    routing = moe_route(logits, 8, added)
    assert (routing.experts.dtype, routing.weights.dtype) == (torch.int64, torch.float32)
    experts, weights = route_twin(logits if added is None else logits + added, 8)
    assert routing.experts.tolist() == experts
    for mine, theirs in zip(routing.weights.tolist(), weights, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


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
        assert moe_route(torch.tensor([logits] * rows, dtype=dtype), 3).experts.tolist() == [expected] * rows


def test_ties_among_many_experts() -> None:
    """A sort of few values can be stable by chance: 64 experts, a third of them equal."""
    logits = torch.zeros(20, 64)
    logits[:, ::3] = 1.0
    assert moe_route(logits, 8).experts.tolist() == [[0, 3, 6, 9, 12, 15, 18, 21]] * 20


def test_nan_stays_in_its_row() -> None:
    logits = randn(3, 64)
    logits[1, 7] = math.nan
    routing = moe_route(logits, 8)
    assert routing.weights.isnan().any(dim=1).tolist() == [False, True, False]
    assert routing.weights[1].isnan().all() and ((routing.experts >= 0) & (routing.experts < 64)).all()
