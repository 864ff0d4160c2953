"""Temperatures, RoPE and the write into pages as plain loops in float64, for every body of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from mdinfer.kernels import LayerCache, TokenPlaces, rope_table
from tests.kernels.attention_twin import FP8, numbers
from tests.kernels.compare import Array, randn, rms_ratio, to_array

Body = Callable[..., torch.Tensor]
THETA = 1_500_000.0
POSITIONS = (0, 1, 255, 256, 729, 730, 4095, 32767)


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def rotated(head: Array, position: int) -> Array:
    K = len(head)
    out: Array = head.copy()
    for i in range(K // 4):
        angle = position * THETA ** (-i / (K // 4))
        a, b = head[i], head[i + K // 4]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + K // 4] = a * math.sin(angle) + b * math.cos(angle)
    return out


def twin(z: Array, wqwv: Array, alpha: Array, positions: list[int], K: int) -> tuple[Array, Array, Array]:
    T, H = len(z), len(alpha)
    q, k, v = np.empty((3, T, H, K))
    for t, p in enumerate(positions):
        f = np.array([gelu(x) for x in z[t]])
        heads = z[t].reshape(3, H, K)
        for h in range(H):
            s = 0.5 + 1 / (1 + math.exp(-alpha[h] * math.log(p + 1)))
            q[t, h] = rotated(heads[0, h] * (math.tanh(f @ wqwv[h]) + s), p)
            k[t, h] = rotated(heads[1, h], p)
            v[t, h] = heads[2, h] * (math.tanh(f @ wqwv[H + h]) + s)
    return q, k, v


def run(
    body: Body,
    H: int,
    K: int,
    L: int,
    *,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    positions: tuple[int, ...] = POSITIONS,
    nowhere: tuple[int, ...] = (),
    biased: bool = False,
    device: torch.device | None = None,
) -> dict[str, float]:
    """RMS error ratios of q, k and v. Tokens `nowhere` have no page; nothing but the others' slots may be touched."""
    device = device or torch.device("cpu")
    T, X = len(positions), 3 * H * K
    P = T // L + 3
    z, wqwv = randn(T, X, seed=2).to(device, dtype), randn(2 * H, X, seed=3, scale=X**-0.5).to(device, dtype)
    bias = randn(X, seed=6).to(device, dtype) if biased else None
    alpha = randn(H, seed=4).to(device)
    shape = (P, H, L, K)
    if stored == FP8:
        k, v = (torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(FP8) for _ in "kv")
        k_scale, v_scale = (torch.full(shape[:3], float("nan"), device=device) for _ in "kv")
        cache = LayerCache(k=k, v=v, k_scale=k_scale, v_scale=v_scale)
    else:
        k, v = (torch.full(shape, float("nan"), dtype=stored or dtype, device=device) for _ in "kv")
        cache = LayerCache(k=k, v=v)
    order = torch.randperm(P * L, generator=torch.Generator().manual_seed(5))[:T]
    page, slot = order // L, order % L
    kept = torch.ones(T, dtype=torch.bool)
    for t in nowhere:
        page[t], kept[t] = -1, False
    table = rope_table(max(positions) + 1, K, device)
    places = TokenPlaces.of(torch.tensor(positions, device=device), page.to(device), slot.to(device), table)
    q = body(z, wqwv, alpha, places, cache, bias)
    assert q.dtype == dtype and q.shape == (T, H, K)
    whole = to_array(z) + (to_array(bias) if bias is not None else 0.0)
    expected = twin(whole, to_array(wqwv), to_array(alpha), list(positions), K)
    found = {"q": rms_ratio(q, expected[0])}
    for name, tensor, scale, want in (
        ("k", cache.k, cache.k_scale, expected[1]),
        ("v", cache.v, cache.v_scale, expected[2]),
    ):
        values = torch.from_numpy(numbers(tensor, scale))
        found[name] = rms_ratio(values[page[kept], :, slot[kept]], want[kept.numpy()])
        assert int((~values.isnan()).sum()) == int(kept.sum()) * H * K  # nothing but the slots is touched
    return found
