"""Temperatures, RoPE and the write into pages, against plain loops in float64.

Tolerance: each value is a few float32 products and a sine of an angle that is exact to 2^-24 of its table: 1e-6 of
the RMS. Position terms take a logarithm of up to 32768: still 1e-6. In bfloat16 the product with Wq runs on inputs
rounded by 2^-9 and q is rounded once more: 1e-2.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import TokenPlaces, qkv_epilogue, rope_table
from tests.kernels.compare import Array, randn, rms_ratio, to_array

THETA = 1_500_000.0


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


@pytest.mark.parametrize("slots_first", [True, False], ids=["slots_first", "heads_first"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(("H", "K", "L"), [(2, 64, 4), (1, 8, 1), (3, 12, 5)], ids=["2x64", "1x8", "3x12"])
def test_against_the_twin(H: int, K: int, L: int, dtype: torch.dtype, tolerance: float, slots_first: bool) -> None:
    positions = [0, 1, 255, 256, 729, 730, 4095, 32767]
    T, P, X = len(positions), 12, 3 * H * K
    z, wqwv = randn(T, X, seed=2).to(dtype), randn(2 * H, X, seed=3, scale=X**-0.5).to(dtype)
    alpha = randn(H, seed=4)
    shape = (P, L, H, K) if slots_first else (P, H, L, K)
    caches = [torch.full(shape, float("nan"), dtype=dtype) for _ in "kv"]
    k_cache, v_cache = (c.transpose(1, 2) if slots_first else c for c in caches)
    order = torch.randperm(P * L, generator=torch.Generator().manual_seed(5))[:T]
    page, slot = order // L, order % L
    places = TokenPlaces.of(torch.tensor(positions), page, slot, rope_table(32768, K, "cpu"))
    q = qkv_epilogue(z, wqwv, alpha, places, k_cache, v_cache)
    assert q.dtype == dtype
    expected = twin(to_array(z), to_array(wqwv), to_array(alpha), positions, K)
    written = [cache[page, :, slot] for cache in (k_cache, v_cache)]
    for found, want in zip((q, *written), expected, strict=True):
        assert rms_ratio(found, want) < tolerance
    for cache in (k_cache, v_cache):  # nothing but the slots is touched
        assert int((~cache.isnan()).sum()) == T * H * K


def test_the_rope_table_is_rounded_once() -> None:
    table = rope_table(5000, 64, "cpu")
    assert table.shape == (5000, 2, 16)
    assert table.dtype == torch.float32
    for p in (0, 1, 777, 4999):
        for i in (0, 7, 15):
            angle = p * THETA ** (-i / 16)
            assert table[p, 0, i].item() == pytest.approx(math.cos(angle), abs=6e-8)
            assert table[p, 1, i].item() == pytest.approx(math.sin(angle), abs=6e-8)


def test_positions_above_256_are_told_apart_in_bfloat16() -> None:
    """ln(t + 1) is float32 whatever the model's dtype: in bfloat16 300 and 301 would be one position."""
    caches, zero = torch.zeros(2, 1, 1, 2, 8, dtype=torch.bfloat16), torch.tensor([0])
    taus = [
        qkv_epilogue(
            torch.ones(1, 24, dtype=torch.bfloat16),
            torch.zeros(2, 24, dtype=torch.bfloat16),
            torch.tensor([-1.0]),
            TokenPlaces.of(torch.tensor([p]), zero, zero, rope_table(1024, 8, "cpu")),
            caches[0],
            caches[1],
        )
        for p in (256, 1023)
    ]
    expected = [0.5 + 1 / (1 + math.exp(math.log(p + 1))) for p in (256, 1023)]
    for q, want in zip(taus, expected, strict=True):
        assert q[0, 0, -1].item() == pytest.approx(want, abs=2**-9)
