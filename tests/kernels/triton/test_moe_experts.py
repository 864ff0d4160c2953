"""Experts of both paths, few tokens and many, against loops in float64.

Tolerance, as shares of the output's RMS. float32: sums of up to 300 products, twice: 1e-6. In 16 bits the activation
between the products is rounded, then the result, in the grouped path each row too (their errors average out in the
sum): three roundings of a share `store_error` at most each, no more than twice that together. fp8 weights are exact
in the twin too. fp8 activations: half a step of 3 mantissa bits is up to 2^-4 of a value, 2.6e-2 on average; rows are
rounded before each product, and u and g, which share x, are multiplied: 8e-2.
int4 weights come as (1 + q / 16) times one number plus another, each about five times as large as the weights: 5e-6 in
float32. In 16 bits the grouped path rounds the weights of both products: two roundings more than three.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mdinfer.kernels import ExpertWeights, Routing
from mdinfer.kernels._triton import moe_grouped, moe_small
from mdinfer.kernels._triton.moe_route import moe_route
from mdinfer.kernels.moe import Activations, grouped, moe_experts_torch
from tests.kernels.compare import Array, randn, rms_ratio, store_error, to_array
from tests.kernels.moe_twin import expert_weights, experts_twin

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FP8_ACTIVATIONS = 8e-2


def tolerance(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float32 else 2 * store_error(dtype)


def int4_tolerance(dtype: torch.dtype) -> float:
    return 5e-6 if dtype == torch.float32 else 1.5 * tolerance(dtype)


def routing_of(logits: torch.Tensor, A: int) -> Routing:
    experts, weights, counts = moe_route(logits, A, None)
    return Routing(experts=experts, weights=weights, counts=counts)


def on(weights: ExpertWeights, device: torch.device) -> ExpertWeights:
    scales = [None if s is None else s.to(device) for s in (weights.fc1_scale, weights.fc2_scale)]
    return ExpertWeights(
        fc1=weights.fc1.to(device), fc2=weights.fc2.to(device), fc1_scale=scales[0], fc2_scale=scales[1]
    )


def experts(x: torch.Tensor, routing: Routing, weights: ExpertWeights, activations: Activations) -> torch.Tensor:
    T, A = routing.experts.shape
    if grouped(T, A, len(weights.fc1)):
        return moe_grouped.moe_experts(x, routing, weights, activations)
    return moe_small.moe_experts(x, routing, weights)


def check(
    logits: torch.Tensor,
    A: int,
    D: int,
    inner: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    fp8: bool = False,
    int4: bool = False,
    activations: Activations = "plain",
    bound: float | None = None,
) -> tuple[torch.Tensor, Array]:
    T, E = logits.shape
    x, weights = (
        randn(T, D, seed=1).to(device, dtype),
        on(expert_weights(E, D, inner, dtype, fp8=fp8, int4=int4), device),
    )
    routing = routing_of(logits.to(device), A)
    found = experts(x, routing, weights, activations)
    assert found.dtype == dtype and found.shape == (T, D)
    want = experts_twin(x, routing, weights)
    assert rms_ratio(found, want) < (bound or tolerance(dtype))
    return found, want


# (T, E, A, D, I), few tokens, then many. Widths of whole blocks and not; 70 is more than one step of the second path.
FEW = [(1, 8, 2, 64, 32), (3, 16, 3, 20, 12), (1, 64, 8, 32, 16), (1, 3, 1, 270, 11)]
MANY = [(5, 8, 2, 64, 32), (33, 6, 3, 40, 24), (17, 64, 8, 48, 16), (3, 2, 2, 70, 11)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "E", "A", "D", "inner"), FEW + MANY, ids=str)
def test_experts(T: int, E: int, A: int, D: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(T, E), A, D, inner, dtype, device)


@pytest.mark.parametrize("fp8", [False, True], ids=["plain", "fp8"])
@pytest.mark.parametrize(("T", "E", "A", "D", "inner"), [(1, 16, 5, 70, 44), (2, 16, 4, 64, 32)], ids=str)
def test_rows_and_choices_taken_in_steps(
    T: int, E: int, A: int, D: int, inner: int, fp8: bool, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """For few tokens, as where a row is longer than 4096 or a token takes more than 8 experts."""
    monkeypatch.setattr(moe_small, "BLOCK_K", 16)
    monkeypatch.setattr(moe_small, "BLOCK_A", 2)
    check(randn(T, E), A, D, inner, torch.float32, device, fp8=fp8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "E", "A", "D", "inner"), [*FEW[:2], FEW[3], *MANY[:2], MANY[3]], ids=str)
def test_fp8_experts(T: int, E: int, A: int, D: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(T, E), A, D, inner, dtype, device, fp8=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "E", "A", "D", "inner"), [*MANY[:2], MANY[3]], ids=str)
def test_fp8_activations(T: int, E: int, A: int, D: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(T, E), A, D, inner, dtype, device, fp8=True, activations="fp8", bound=FP8_ACTIVATIONS)


def test_fp8_activations_are_those_of_the_torch_body(device: torch.device) -> None:
    """Same roundings up to float32 sums, which may tip a few activations to the next e4m3 value."""
    x, weights = randn(17, 128, seed=1), expert_weights(8, 128, 64, torch.float32, fp8=True)
    routing = routing_of(randn(17, 8).to(device), 2)
    found = experts(x.to(device), routing, on(weights, device), "fp8")
    on_cpu = Routing(experts=routing.experts.cpu().long(), weights=routing.weights.cpu())
    assert rms_ratio(found, to_array(moe_experts_torch(x, on_cpu, weights, "fp8"))) < 5e-3


@pytest.mark.parametrize("T", [3, 17, 40])
@pytest.mark.parametrize("kind", ["plain", "fp8", "int4"])
def test_one_expert_takes_all(T: int, kind: str, device: torch.device) -> None:
    logits = randn(T, 8)
    logits[:, 5] += 1e6
    bound = int4_tolerance(torch.float32) if kind == "int4" else None
    check(logits, 1, 64, 32, torch.float32, device, fp8=kind == "fp8", int4=kind == "int4", bound=bound)


@pytest.mark.parametrize("int4", [False, True], ids=["plain", "int4"])
@pytest.mark.parametrize("T", [2, 17])
def test_experts_nobody_takes_are_not_read(T: int, int4: bool, device: torch.device) -> None:
    """Their weights may be anything: here NaN."""
    logits = randn(T, 8)
    logits[:, [0, 3, 4, 6, 7]] -= 1e6
    weights = on(expert_weights(8, 48, 20, torch.float32, int4=int4), device)
    for part in (weights.fc1_scale, weights.fc2_scale) if int4 else (weights.fc1, weights.fc2):
        assert part is not None
        part[[0, 3, 4, 6, 7]] = float("nan")
    out = experts(randn(T, 48).to(device), routing_of(logits.to(device), 3), weights, "plain")
    assert out.isfinite().all()


@pytest.mark.parametrize("kind", ["plain", "fp8", "int4"])
@pytest.mark.parametrize("T", [3, 17])
def test_nan_stays_in_its_row(T: int, kind: str, device: torch.device) -> None:
    """A NaN in a row of x, and one in a row's logits."""
    activations: Activations = "fp8" if kind == "fp8" else "plain"
    x, logits = randn(T, 48).to(device), randn(T, 8).to(device)
    x[0, 5], logits[2, 3] = float("nan"), float("nan")
    weights = on(expert_weights(8, 48, 20, torch.float32, fp8=kind != "int4", int4=kind == "int4"), device)
    out = experts(x, routing_of(logits, 2), weights, activations)
    assert out.isnan().all(dim=1).tolist() == [t in (0, 2) for t in range(T)]
    assert out[[t for t in range(T) if t not in (0, 2)]].isfinite().all()


@pytest.mark.parametrize("int4", [False, True], ids=["plain", "int4"])
def test_a_token_is_the_same_among_others(int4: bool, device: torch.device) -> None:
    """Bit for bit among any others of the grouped path with the same tiles."""
    x, logits = randn(40, 64).to(device, torch.bfloat16), randn(40, 8).to(device)
    weights = on(expert_weights(8, 64, 32, torch.bfloat16, int4=int4), device)
    whole = experts(x, routing_of(logits, 2), weights, "plain")
    again = experts(x.flip(0), routing_of(logits.flip(0), 2), weights, "plain")
    assert torch.equal(again.flip(0), whole)
    part = experts(x[3:30].contiguous(), routing_of(logits[3:30], 2), weights, "plain")
    assert torch.equal(part, whole[3:30])


def test_strided_rows_and_no_rows(device: torch.device) -> None:
    weights = on(expert_weights(8, 64, 32, torch.float32), device)
    for T in (3, 17):
        wide, routing = randn(T, 128).to(device), routing_of(randn(T, 8).to(device), 2)
        part = wide[:, :64]
        assert torch.equal(
            experts(part, routing, weights, "plain"), experts(part.contiguous(), routing, weights, "plain")
        )
    nobody = routing_of(torch.empty(0, 8, device=device), 2)
    assert experts(torch.empty(0, 64, device=device), nobody, weights, "plain").shape == (0, 64)


def test_large_tiles(device: torch.device) -> None:
    """Tiles of 64 and 128 rows, which only large batches take."""
    for T in (100, 420):
        check(randn(T, 2), 1, 32, 16, torch.bfloat16, device)
        check(randn(T, 2), 1, 32, 16, torch.bfloat16, device, int4=True, bound=int4_tolerance(torch.bfloat16))


def test_weights_of_choices_are_applied_in_float32(device: torch.device) -> None:
    logits = randn(17, 8).to(device)
    x, weights, routing = (
        randn(17, 64).to(device),
        on(expert_weights(8, 64, 32, torch.float32), device),
        routing_of(logits, 2),
    )
    doubled = replace(routing, weights=2 * routing.weights)
    assert torch.equal(experts(x, doubled, weights, "plain"), 2 * experts(x, routing, weights, "plain"))
