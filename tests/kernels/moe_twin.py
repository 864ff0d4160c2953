"""Routing and experts as plain loops in float64, and weights to try them with."""

from __future__ import annotations

import math

import numpy as np
import torch

from mdinfer.kernels import ExpertWeights, Routing
from tests.kernels.compare import Array, randn, to_array


def expert_weights(
    E: int, D: int, inner: int, dtype: torch.dtype, *, fp8: bool = False, int4: bool = False, int8: bool = False
) -> ExpertWeights:
    """Products of numbers of size 1 have that size too; fp8 weights have no less after their scales, int8 about 2."""
    if int8:
        (fc1, scale1), (fc2, scale2) = _int8_weight(E, 2 * inner, D, seed=3), _int8_weight(E, D, inner, seed=4)
        return ExpertWeights(fc1=fc1, fc2=fc2, fc1_scale=scale1, fc2_scale=scale2)
    if int4:
        (fc1, scale1), (fc2, scale2) = _int4_weight(E, 2 * inner, D, seed=3), _int4_weight(E, D, inner, seed=4)
        return ExpertWeights(fc1=fc1, fc2=fc2, fc1_scale=scale1, fc2_scale=scale2)
    fc1, fc2 = randn(E, 2 * inner, D, seed=3, scale=D**-0.5), randn(E, D, inner, seed=4, scale=inner**-0.5)
    if not fp8:
        return ExpertWeights(fc1=fc1.to(dtype), fc2=fc2.to(dtype))
    scales = randn(E, 2 * inner, seed=5).abs() + 0.1, randn(E, D, seed=6).abs() + 0.1
    bits = (fc1 * D**0.5).to(torch.float8_e4m3fn), (fc2 * inner**0.5).to(torch.float8_e4m3fn)
    return ExpertWeights(fc1=bits[0], fc2=bits[1], fc1_scale=scales[0] * D**-0.5, fc2_scale=scales[1] * inner**-0.5)


def _int8_weight(E: int, N: int, K: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Any of the 255 numbers; channels differ in size by up to 4."""
    draw = torch.Generator().manual_seed(seed)
    bits = torch.randint(-127, 128, (E, N, K), generator=draw, dtype=torch.int8)
    return bits, ((torch.rand(E, N, generator=draw) * 3 + 1) / 127 * K**-0.5).bfloat16()


def _int4_weight(E: int, N: int, K: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Any bits, in the place of inputs that are not there too; steps of 0.1 to 0.4 deviations, from -7.5 of them on."""
    groups, draw = -(-K // 128), torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (E, N, 64 * groups), generator=draw, dtype=torch.uint8)
    step = (torch.rand(E, N, groups, generator=draw) * 0.3 + 0.1) * K**-0.5
    least = -step * (7.5 + randn(E, N, groups, seed=seed))
    return bits, torch.stack((step, least), dim=-1).bfloat16()


def _int4_values(bits: torch.Tensor, scale: torch.Tensor, K: int) -> Array:
    packed, numbers = bits.cpu().numpy().astype(np.int64), to_array(scale.float())
    values = np.empty((*packed.shape[:-1], K))
    for k in range(K):
        byte = packed[..., 64 * (k // 128) + k % 64]
        q = byte // 16 if k % 128 >= 64 else byte % 16
        values[..., k] = numbers[..., k // 128, 1] + numbers[..., k // 128, 0] * q
    return values


def exact(weights: torch.Tensor, scale: torch.Tensor | None, K: int) -> Array:
    if weights.dtype == torch.uint8:
        assert scale is not None
        return _int4_values(weights, scale, K)
    return to_array(weights.float()) * (1.0 if scale is None else to_array(scale)[..., None])


def experts_twin(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> Array:
    rows, fc1 = to_array(x), exact(weights.fc1, weights.fc1_scale, x.shape[1])
    fc2 = exact(weights.fc2, weights.fc2_scale, fc1.shape[1] // 2)
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
