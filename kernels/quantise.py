"""e4m3 values with one scale a row, for products of two fp8 operands.

scale = largest |x| of the row / 448;  q = x / scale, rounded to the nearest e4m3 value, ties to even

What makes rows for a product may round them as it writes them: `layer_norm_rows`, `linear_gelu_rows`. They give
`Float8Rows`, of values that were never rounded to the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mdinfer.kernels import dispatch

LARGEST = 448.0
SMALLEST = torch.finfo(torch.float32).tiny

# Up to so many rows, a product with e4m3 weights takes them as they are: one tile of the matrix unit. The rows at
# which rounding them pays are not measured.
FEW_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8Rows:
    """What stands for activations (..., K) of `dtype`: values q (R, K) in e4m3, scales (R,); `shape` is theirs."""

    q: torch.Tensor
    scale: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(q (R, K) float8_e4m3fn, scale (R,) float32) of x (R, K); all arithmetic in float32.

    A row of zeros, and one so small that its scale is no normal number, gets scale 1. A row with NaN or infinity
    gets a scale that is not finite, and q without meaning.
    """
    assert x.dim() == 2, x.shape
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import quantise

        return quantise.quantise_rows(x)
    return quantise_rows_torch(x)


def quantise_rows_torch(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The torch body of `quantise_rows`."""
    values = x.float()
    scale = values.abs().amax(dim=-1) / LARGEST
    scale = torch.where(scale < SMALLEST, 1.0, scale)
    return (values / scale[:, None]).to(torch.float8_e4m3fn), scale
