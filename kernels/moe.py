"""Mixture of experts: who takes a token, and what they make of it.

route:    the A largest logits, ties to the lower expert; weights are the softmax over those A, in float32
experts:  y[t] = sum over chosen e of w[t, e] * fc2[e] (gelu_erf(u) * (g + 1)),  (u, g) = halves of fc1[e] x[t]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.kernels.linear import linear


def moe_route(logits_TE: torch.Tensor, experts_per_token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts_TA int64, weights_TA float32), likeliest first."""
    values, experts = torch.sort(logits_TE.float(), dim=-1, descending=True, stable=True)
    return experts[:, :experts_per_token], torch.softmax(values[:, :experts_per_token], dim=-1)


def moe_experts(
    x_TD: torch.Tensor,
    experts_TA: torch.Tensor,
    weights_TA: torch.Tensor,
    fc1: torch.Tensor,
    fc2: torch.Tensor,
    fc1_scale: torch.Tensor | None = None,
    fc2_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """(T, D) in x's dtype; sums over experts are float32.

    fc1 (E, 2I, D) and fc2 (E, D, I) in x's dtype, or float8_e4m3fn with float32 scales (E, 2I) and (E, D) per
    output channel. The torch body gathers tokens per expert: work and memory grow with the tokens, not with E.
    """
    T, A = experts_TA.shape
    assert x_TD.shape[0] == T and fc1.shape[1] == 2 * fc2.shape[2] and (fc1_scale is None) == (fc2_scale is None)
    x_RD, chosen, counts, order = _by_expert(x_TD, experts_TA)
    y_RD = torch.empty(T * A, x_TD.shape[1], dtype=x_TD.dtype, device=x_TD.device)
    start = 0
    for e, count in zip(chosen, counts, strict=True):
        end = start + count
        y_RD[start:end] = _expert(x_RD[start:end], e, fc1, fc2, fc1_scale, fc2_scale)
        start = end
    if order is not None:
        y_RD = torch.empty_like(y_RD).index_copy_(0, order, y_RD)
    return torch.bmm(weights_TA[:, None], y_RD.view(T, A, x_TD.shape[1]).float())[:, 0].to(x_TD.dtype)


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


def _expert(
    x: torch.Tensor,
    e: int,
    fc1: torch.Tensor,
    fc2: torch.Tensor,
    fc1_scale: torch.Tensor | None,
    fc2_scale: torch.Tensor | None,
) -> torch.Tensor:
    u, g = _linear(x, fc1[e], None if fc1_scale is None else fc1_scale[e]).chunk(2, dim=-1)
    return _linear(F.gelu(u) * (g + 1), fc2[e], None if fc2_scale is None else fc2_scale[e])


def _linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    if scale is None:
        return linear(x, weight)
    return (linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)
