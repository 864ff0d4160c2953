"""What the kernels of both paths through the experts share: loads, weights to numbers, the gate."""

from __future__ import annotations

import triton
import triton.language as tl

from mdinfer.kernels._triton.float8 import e4m3_to_float


@triton.jit
def read(ptr, inside, EVEN: tl.constexpr, CACHE: tl.constexpr):
    """What lies at the pointers, zero outside; EVEN: nothing is outside."""
    if EVEN:
        return tl.load(ptr, cache_modifier=CACHE)
    else:
        return tl.load(ptr, mask=inside, other=0, cache_modifier=CACHE)


@triton.jit
def to_float(x, NATIVE: tl.constexpr):
    """float32 of weights or activations in a float dtype or as the bits of e4m3."""
    if x.dtype == tl.uint8:
        return e4m3_to_float(x, NATIVE)
    else:
        return x.to(tl.float32)


@triton.jit
def gate(u, g):
    """gelu_erf(u) * (g + 1)"""
    return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476)) * (g + 1.0)
