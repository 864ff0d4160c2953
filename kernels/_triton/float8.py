"""e4m3 (4 bits of exponent with bias 7, 3 of mantissa, no infinity) to and from float32 inside kernels.

Tensors of float8_e4m3fn are passed as uint8 (`bits`). Where the chip converts them by instructions (compute
capability 8.9 on) `NATIVE` is true; elsewhere integer operations give the same values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LARGEST = 448.0
_LARGEST = tl.constexpr(LARGEST)
_SMALLEST = tl.constexpr(torch.finfo(torch.float32).tiny)


def bits(x: torch.Tensor) -> torch.Tensor:
    """A float8_e4m3fn tensor as uint8, others as they are."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


@triton.jit
def e4m3_to_float(x, NATIVE: tl.constexpr):
    """float32 of uint8 bits. Exact; the NaN pattern becomes NaN only where native (weights hold none)."""
    if NATIVE:
        return x.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        # The bits moved into float16's fields have its bias of 15 instead of 7: off by 2^8, subnormals too.
        wide = x.to(tl.uint16)
        half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def float_to_e4m3(x, NATIVE: tl.constexpr):
    """uint8 bits of float32 values within +-448, rounded to nearest, ties to even."""
    if NATIVE:
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        raw = x.to(tl.uint32, bitcast=True)
        sign = (raw >> 24) & 0x80
        size = raw & 0x7FFFFFFF
        # Normal results: drop 20 bits of mantissa, half of the dropped range added first, one less on even.
        rounded = size + 0x7FFFF + ((size >> 20) & 1)
        normal = (rounded >> 20) - ((127 - 7) << 3)
        # Results below 2^-6 count in steps of 2^-9: adding 1.5 * 2^(23 - 9) leaves the rounded count in the low bits.
        shifted = tl.abs(x) + 24576.0
        subnormal = shifted.to(tl.uint32, bitcast=True) & 0xF
        magnitude = tl.where(size < ((127 - 6) << 23), subnormal, normal)
        return (sign | magnitude).to(tl.uint8)


@triton.jit
def e4m3_rows(x, NATIVE: tl.constexpr):
    """uint8 bits of float32 rows (R, K), and their scales (R,), as `mdinfer.kernels.quantise` has them."""
    scale = tl.div_rn(tl.max(tl.abs(x), axis=1), _LARGEST)
    scale = tl.where(scale < _SMALLEST, 1.0, scale)
    # The maximum passes over NaN; the scale must not.
    scale = tl.where(tl.max((x != x).to(tl.int32), axis=1) > 0, float("nan"), scale)
    return float_to_e4m3(tl.div_rn(x, scale[:, None]), NATIVE), scale
