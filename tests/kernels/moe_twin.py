"""Routing and experts as plain loops in float64, and weights to try them with."""

from __future__ import annotations

import math

import numpy as np
import torch

from mdinfer.kernels import ExpertWeights, Routing
from tests.kernels.compare import Array, randn, to_array


def expert_weights(E: int, D: int, inner: int, dtype: torch.dtype, *, fp8: bool = False) -> ExpertWeights:
    """Products of numbers of size 1 have that size too; fp8 weights have no less after their scales."""
    fc1, fc2 = randn(E, 2 * inner, D, seed=3, scale=D**-0.5), randn(E, D, inner, seed=4, scale=inner**-0.5)
    if not fp8:
        return ExpertWeights(fc1=fc1.to(dtype), fc2=fc2.to(dtype))
    scales = randn(E, 2 * inner, seed=5).abs() + 0.1, randn(E, D, seed=6).abs() + 0.1
    bits = (fc1 * D**0.5).to(torch.float8_e4m3fn), (fc2 * inner**0.5).to(torch.float8_e4m3fn)
    return ExpertWeights(fc1=bits[0], fc2=bits[1], fc1_scale=scales[0] * D**-0.5, fc2_scale=scales[1] * inner**-0.5)


def exact(weights: torch.Tensor, scale: torch.Tensor | None) -> Array:
    return to_array(weights.float()) * (1.0 if scale is None else to_array(scale)[..., None])


def experts_twin(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> Array:
    rows, fc1, fc2 = to_array(x), exact(weights.fc1, weights.fc1_scale), exact(weights.fc2, weights.fc2_scale)
    out = np.zeros_like(rows)
    for t, (experts, shares) in enumerate(zip(routing.experts.tolist(), to_array(routing.weights), strict=True)):
        for e, share in zip(experts, shares, strict=True):
            u, g = np.split(fc1[e] @ rows[t], 2)
            gelu = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in u])
            out[t] += share * (fc2[e] @ (gelu * (g + 1)))
    return out


def route_twin(logits: torch.Tensor, A: int) -> tuple[list[list[int]], list[list[float]]]:
    """Of logits without NaN: the A largest, the lower expert first where equal, and their shares."""
    experts, weights = [], []
    for row in to_array(logits).tolist():
        order = sorted(range(len(row)), key=lambda e: (-row[e], e))[:A]
        odds = [math.exp(row[e] - row[order[0]]) for e in order]
        experts.append(order)
        weights.append([o / sum(odds) for o in odds])
    return experts, weights
