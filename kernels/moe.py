"""Mixture of experts: who takes a token, and what they make of it.

route:    the A largest of logits + bias, ties to the lower expert; weights are the softmax over those A, in float32
experts:  y[t] = sum over chosen e of w[t, e] * fc2[e] (gelu_erf(u) * (g + 1)),  (u, g) = halves of fc1[e] x[t]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch
from mdinfer.kernels.float8 import linear_float8
from mdinfer.kernels.int4 import INT4, dequantise, linear_laid_out, packed_shape, scale_shape
from mdinfer.kernels.int8 import INT8, linear_int8
from mdinfer.kernels.linear import linear
from mdinfer.kernels.quantise import quantise_rows

Activations = Literal["plain", "fp8"]

_SMALL = 1 << 23  # multiplications with fc1, of all experts on all tokens: some 0.4 ms on one core


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Who takes which token.

    experts  (T, A) integers (int64 of the torch body, int32 of the compiled one), distinct in a row, likeliest first
    weights  (T, A) float32
    counts   (blocks, E) int32, the tokens of each block that an expert takes; for the compiled body of `moe_experts`,
             which needs it where `grouped` holds
    """

    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """The experts of a layer: fc1 (E, 2I, D), fc2 (E, D, I), in the dtype of the activations.

    Or both in float8_e4m3fn, with float32 scales per output channel: fc1_scale (E, 2I), fc2_scale (E, D).
    Or both in int4, with what `mdinfer.kernels.int4` has for these shapes.
    laid_out: int4 as `mdinfer.kernels.int4.lay_out` leaves it, for bfloat16 on a CPU.
    Or both in int8, on a CPU, with bfloat16 scales of the same shapes as float8's: see `mdinfer.kernels.int8`.
    packed: fc1 and fc2 of each expert as `mdinfer.kernels.packed` packs them, e4m3 times its scale as bfloat16; `fc1`
        and `fc2` say what they were, and their shapes.
    """

    fc1: torch.Tensor
    fc2: torch.Tensor
    fc1_scale: torch.Tensor | None = None
    fc2_scale: torch.Tensor | None = None
    laid_out: bool = False
    packed: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        (E, D, _), inner = self.fc2.shape, self.fc1.shape[1] // 2
        for weight, scale, shape in (
            (self.fc1, self.fc1_scale, (E, 2 * inner, D)),
            (self.fc2, self.fc2_scale, (E, D, inner)),
        ):
            int4, channels = weight.dtype == INT4, weight.dtype in (INT8, torch.float8_e4m3fn)
            assert weight.shape == (packed_shape(*shape) if int4 else shape), (weight.shape, shape)
            expected = scale_shape(*shape) if int4 else shape[:2] if channels else None
            assert (None if scale is None else scale.shape) == expected, (weight.dtype, expected)
        assert self.fc1.dtype == self.fc2.dtype

    @property
    def inner(self) -> int:
        return self.fc1.shape[1] // 2

    @property
    def int4(self) -> bool:
        return self.fc1.dtype == INT4


def grouped(T: int, A: int, E: int) -> bool:
    """Whether rows are put in expert order; fewer than one an expert on average are taken one by one.

    Up to there (T = 8 in the published model) experts that two rows share are few, and the second read of their
    weights comes from the chip's cache, whose bandwidth is at most about twice the memory's. Not measured.
    """
    return T * A > E


def moe_route(logits_TE: torch.Tensor, experts_per_token: int, bias_E: torch.Tensor | None = None) -> Routing:
    """Of logits in any float dtype. -0.0 ties with 0.0. NaN comes first: such a row's weights are NaN, its experts
    distinct and in range like any other's.
    """
    assert 0 < experts_per_token <= logits_TE.shape[1], (logits_TE.shape, experts_per_token)
    if dispatch.compiled(logits_TE):
        from mdinfer.kernels._triton import moe_route as route

        experts, weights, counts = route.moe_route(logits_TE, experts_per_token, bias_E)
        return Routing(experts=experts, weights=weights, counts=counts)
    return moe_route_torch(logits_TE, experts_per_token, bias_E)


def moe_route_torch(logits_TE: torch.Tensor, experts_per_token: int, bias_E: torch.Tensor | None = None) -> Routing:
    """The torch body of `moe_route`."""
    logits = logits_TE.float() if bias_E is None else logits_TE.float() + bias_E.float()
    values, experts = torch.sort(logits, dim=-1, descending=True, stable=True)
    weights = torch.softmax(values[:, :experts_per_token], dim=-1)
    return Routing(experts=experts[:, :experts_per_token], weights=weights)


def moe_experts(
    x_TD: torch.Tensor, routing: Routing, experts: ExpertWeights, activations: Activations = "plain"
) -> torch.Tensor:
    """(T, D) in x's dtype; sums over experts are float32, in the order of `routing`.

    With activations "fp8" (for fp8 weights, where `grouped` holds; fewer rows stay as they are, for there the weights
    are what costs) both products take their rows from `quantise_rows`. An expert that nobody takes is not read.
    """
    T, A = routing.experts.shape
    assert x_TD.shape == (T, experts.fc2.shape[1]) and routing.weights.shape == (T, A), (x_TD.shape, T, A)
    assert activations == "plain" or experts.fc1.dtype == torch.float8_e4m3fn, "fp8 activations go with fp8 experts"
    if not dispatch.compiled(x_TD):
        return moe_experts_torch(x_TD, routing, experts, activations)
    assert experts.fc1.dtype != INT8, "int8 experts are for a CPU"
    if grouped(T, A, len(experts.fc1)):
        from mdinfer.kernels._triton import moe_grouped

        return moe_grouped.moe_experts(x_TD, routing, experts, activations)
    from mdinfer.kernels._triton import moe_small

    return moe_small.moe_experts(x_TD, routing, experts)


def moe_experts_torch(
    x_TD: torch.Tensor, routing: Routing, experts: ExpertWeights, activations: Activations = "plain"
) -> torch.Tensor:
    """The torch body of `moe_experts`. Gathers tokens per expert: work and memory grow with the tokens, not with E."""
    T, A = routing.experts.shape
    if _small(T, A, experts):
        return _all_on_all(x_TD, routing, experts)
    assert activations == "plain" or experts.packed is None, "fp8 activations go with experts that are kept in fp8"
    fp8 = activations == "fp8" and grouped(T, A, len(experts.fc1))
    x_RD, chosen, counts, order = _by_expert(x_TD, routing.experts)
    y_RD = torch.empty(T * A, x_TD.shape[1], dtype=x_TD.dtype, device=x_TD.device)
    start = 0
    for e, count in zip(chosen, counts, strict=True):
        end = start + count
        y_RD[start:end] = _expert(x_RD[start:end], e, experts, fp8)
        start = end
    if order is not None:
        y_RD = torch.empty_like(y_RD).index_copy_(0, order, y_RD)
    return torch.bmm(routing.weights[:, None], y_RD.view(T, A, x_TD.shape[1]).float())[:, 0].to(x_TD.dtype)


def _small(T: int, A: int, experts: ExpertWeights) -> bool:
    """In float32 alone: bfloat16's library compiles a product for each count of rows."""
    E, numbers = len(experts.fc1), experts.fc1.numel()
    return T > 1 and 2 * T * A >= E and T * numbers <= _SMALL and experts.fc1.dtype == torch.float32


def _all_on_all(x_TD: torch.Tensor, routing: Routing, experts: ExpertWeights) -> torch.Tensor:
    """All experts on all tokens, of which those chosen are kept: small ones take less time than calls for each do."""
    (T, D), E = x_TD.shape, len(experts.fc1)
    u, g = torch.bmm(x_TD.expand(E, T, D), experts.fc1.transpose(1, 2)).chunk(2, dim=-1)
    y_ETD = torch.bmm(F.gelu(u) * (g + 1), experts.fc2.transpose(1, 2))
    y_TAD = y_ETD[routing.experts, torch.arange(T, device=x_TD.device)[:, None]]
    return torch.bmm(routing.weights[:, None], y_TAD)[:, 0]


def _by_expert(
    x_TD: torch.Tensor, experts_TA: torch.Tensor
) -> tuple[torch.Tensor, list[int], list[int], torch.Tensor | None]:
    """Rows sorted by expert, the experts with their counts, and which (token, choice) each row is (None: in order)."""
    T, A = experts_TA.shape
    if T == 1:
        return x_TD.expand(A, -1), experts_TA[0].tolist(), [1] * A, None
    flat = experts_TA.flatten()
    order = torch.argsort(flat, stable=True)
    chosen, counts = torch.unique_consecutive(flat[order], return_counts=True)
    return x_TD[order // A], chosen.tolist(), counts.tolist(), order


def _expert(x: torch.Tensor, e: int, experts: ExpertWeights, fp8: bool) -> torch.Tensor:
    if experts.int4:
        return _expert_int4(x, e, experts)
    if experts.packed is not None:
        fc1, fc2 = experts.packed
        u, g = linear(x, fc1[e]).chunk(2, dim=-1)
        return linear(F.gelu(u) * (g + 1), fc2[e])
    scale1, scale2 = experts.fc1_scale, experts.fc2_scale
    u, g = _linear(x, experts.fc1[e], None if scale1 is None else scale1[e], fp8).chunk(2, dim=-1)
    return _linear(F.gelu(u) * (g + 1), experts.fc2[e], None if scale2 is None else scale2[e], fp8)


def _expert_int4(x: torch.Tensor, e: int, experts: ExpertWeights) -> torch.Tensor:
    assert experts.fc1_scale is not None and experts.fc2_scale is not None
    if experts.laid_out:
        u, g = linear_laid_out(x, experts.fc1[e], experts.fc1_scale[e]).chunk(2, dim=-1)
        return linear_laid_out(F.gelu(u) * (g + 1), experts.fc2[e], experts.fc2_scale[e])
    u, g = linear(x, dequantise(experts.fc1[e], experts.fc1_scale[e], x.shape[1], x.dtype)).chunk(2, dim=-1)
    return linear(F.gelu(u) * (g + 1), dequantise(experts.fc2[e], experts.fc2_scale[e], experts.inner, x.dtype))


def _linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, fp8: bool) -> torch.Tensor:
    if scale is None:
        return linear(x, weight)
    if fp8:
        bits, row_scale = quantise_rows(x)
        return (linear(bits.to(x.dtype), weight.to(x.dtype)).float() * row_scale[:, None] * scale).to(x.dtype)
    if weight.dtype == INT8:
        return linear_int8(x, weight, scale)
    if x.is_cpu:
        return linear_float8(x, weight, scale)
    return (linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)
