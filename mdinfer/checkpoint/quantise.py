"""float8 (e4m3) values with one float32 scale per output channel, and back.

The last dimension of a weight is its input dimension; every row over it is an output channel:
value = scale * q, with q in float8_e4m3fn (largest finite value 448).
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_SMALLEST = torch.finfo(torch.float32).tiny


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., R, K) of any float type -> float8 of the same shape, and float32 scales (..., R).

    scale = amax(|row|) / 448; q = round-to-nearest-even(row / scale), computed in float32. A row of zeros,
    and one so small that its scale would not be a normal float32, gets scale 1. The error of a value v
    is at most max(|v| / 16, scale / 1024): half a step of three mantissa bits, or of e4m3's subnormals.
    A row that holds NaN or infinity gets a scale that is not finite.
    """
    values = weight.float()
    scale = values.abs().amax(dim=-1) / FP8_MAX
    scale = torch.where(scale < _SMALLEST, 1.0, scale)
    return (values / scale.unsqueeze(-1)).to(FP8), scale


def dequantise_rows(values: Tensor, scale: Tensor) -> Tensor:
    """float8 (..., R, K) and scales (..., R) -> float32 (..., R, K) = scale * value."""
    return values.float() * scale.float().unsqueeze(-1)
