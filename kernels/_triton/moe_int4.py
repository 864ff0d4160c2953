"""What the kernels of both paths need of int4 weights; `mdinfer.kernels.int4` has the layout.

The four bits become the upper ones of a mantissa: those of f = 1 + q / 16, a float32 without a conversion. Hence
w = f * slope + offset with slope = 16 step and offset = least - 16 step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.moe_math import read
from mdinfer.kernels.int4 import GROUP, HALF

ONE = 0x3F800000
_HALF = tl.constexpr(HALF)
_GROUP = tl.constexpr(GROUP)


def words(x: torch.Tensor) -> torch.Tensor:
    """Four bytes of the last dimension as one int32: of weights (..., 64 G) as (..., 16 G), of scales as (..., G)."""
    x = x.view(torch.int32)
    return x.squeeze(-1) if x.shape[-1] == 1 else x


@triton.jit
def line(word):
    """Slope and offset, float32."""
    slope = (word << 16).to(tl.float32, bitcast=True) * 16.0
    return slope, ((word >> 16) << 16).to(tl.float32, bitcast=True) - slope


@triton.jit
def fraction(x, BIT: tl.constexpr, one):
    """f of the four bits from BIT on; `one` are the bits of 1.0.

    Of two constants the assembler makes two operations, of one and a number that it does not know it makes one.
    """
    if BIT < 19:
        bits = x.to(tl.uint32) << (19 - BIT)
    else:
        bits = x.to(tl.uint32) >> (BIT - 19)
    return ((bits & 0x780000) | one).to(tl.float32, bitcast=True)


@triton.jit
def _operand(x, BIT: tl.constexpr, one, slope, offset, DOT: tl.constexpr):
    return (fraction(x, BIT, one) * slope + offset).to(DOT)


@triton.jit
def int4_product(
    weight_ptr, scale_ptr, expert, x_ptr, row, n, one, N: tl.constexpr, K: tl.constexpr, HALVES: tl.constexpr,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As `_product` of the grouped kernels: a step takes BLOCK_K inputs of one group, one product for lower bits and
    one for upper ones.
    """
    BLOCK_B: tl.constexpr = BLOCK_K // 2
    GROUPS: tl.constexpr = (K + _GROUP - 1) // _GROUP
    BYTES: tl.constexpr = GROUPS * _HALF
    EVEN: tl.constexpr = N % BLOCK_N == 0
    EVEN_K: tl.constexpr = K == GROUPS * _GROUP
    byte = tl.arange(0, BLOCK_B)
    x_ptr += row[None, :].to(tl.int64) * K + byte[:, None]
    weight_ptr += expert * (HALVES * N * BYTES) + n[:, None] * BYTES + byte[None, :]
    scale_ptr += expert * (HALVES * N * GROUPS) + n * GROUPS
    u = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    g = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, BYTES, BLOCK_B):
        group = start // _HALF
        k = start + group * _HALF
        low = read(x_ptr + k, (k + byte < K)[:, None], EVEN_K, "").to(DOT)
        high = read(x_ptr + k + _HALF, (k + _HALF + byte < K)[:, None], EVEN_K, "").to(DOT)
        weights = read(weight_ptr + start, (n < N)[:, None], EVEN, "")
        slope, offset = line(read(scale_ptr + group, n < N, EVEN, "")[:, None])
        u = tl.dot(_operand(weights, 0, one, slope, offset, DOT), low, u, input_precision="ieee")
        u = tl.dot(_operand(weights, 4, one, slope, offset, DOT), high, u, input_precision="ieee")
        if HALVES == 2:
            weights = read(weight_ptr + start + N * BYTES, (n < N)[:, None], EVEN, "")
            slope, offset = line(read(scale_ptr + group + N * GROUPS, n < N, EVEN, "")[:, None])
            g = tl.dot(_operand(weights, 0, one, slope, offset, DOT), low, g, input_precision="ieee")
            g = tl.dot(_operand(weights, 4, one, slope, offset, DOT), high, g, input_precision="ieee")
    return u, g
