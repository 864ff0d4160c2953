"""e4m3 weights times activations on a CPU, whose own conversion takes them one by one: 4 ns each on one core.

An e4m3 number s eeee mmm, put where bfloat16 and float32 have their sign, the low bits of their exponent and the high
bits of their mantissa, is itself times 2^(7 - 127): so are its subnormal numbers, and its zeros. Shifts and masks of
whole tensors do it, 0.03 ns a weight and pass.

NaN becomes 480: checkpoints that hold one are refused.
"""

from __future__ import annotations

import torch

from mdinfer.kernels.linear import linear

_BIAS = 120  # by which the exponents of both types are further from 0 than e4m3's
_HALF = _BIAS // 2
_MASK = {torch.int16: 0x87F0, torch.int32: 0x87F00000}


def linear_float8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(R, N) = x (R, K) times the transposed weight (N, K) in float8_e4m3fn and its float32 scale (N,), in x's dtype.

    The factor of 2^-120 is undone half in x and half in the result: one pass less over the weights. In float32 all
    numbers are exact. Of bfloat16 libraries some take subnormal numbers for 0: then weights below 2^-6, where a
    channel's largest is 448, are lost. |x| has to stay below 2^67.
    """
    if x.dtype == torch.bfloat16:
        product = linear(x * 2.0**_HALF, _moved(weight, torch.int16).view(torch.bfloat16))
        return (product.float() * (scale * 2.0 ** (_BIAS - _HALF))).to(x.dtype)
    return (linear(x, float8_values(weight)) * scale).to(x.dtype)


def float8_values(weight: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn without NaN -> float32, exactly."""
    return _moved(weight, torch.int32).view(torch.float32).mul_(2.0**_BIAS)


def _moved(weight: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """The bits of e4m3 in the places of the float type as wide as `to`; widening brings the sign to the top."""
    bits, width = weight.view(torch.int8).to(to), 8 * to.itemsize
    mask = _MASK[to] - (1 << width)  # as a negative number
    return bits.bitwise_left_shift_(width - 12).bitwise_and_(mask)
