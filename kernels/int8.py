"""int8 weights, each output channel with a scale of its own; for a CPU, which multiplies them as they are.

    w[n, k] = scale[n] * q[n, k],  q in -127..127

weight  (..., N, K) int8
scale   (..., N) bfloat16: it has the range of whatever the weights are, and its rounding costs nothing, for q is
        chosen after it
"""

from __future__ import annotations

import torch

from mdinfer.kernels.linear import linear

INT8 = torch.int8
MOST = 127
# Rows up to which torch's own product of bfloat16 and int8 is used: it converts weights for each row anew. At
# (N, K) = (2048, 2048) on one core (AVX-512) 1, 4, 8, 16 rows take it 0.45, 0.59, 1.07, 1.95 ms; weights converted
# first, then multiplied, 0.98, 1.02, 1.32, 1.58 ms; bfloat16 weights 0.77, 0.71, 0.90, 1.15 ms.
_FEW = 8
_MULTIPLE = 32  # of inputs; at others that product reads beyond a row on its wide paths
_product = getattr(torch, "_weight_int8pack_mm", None)  # private to torch: it may go


def linear_int8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(R, N) = x (R, K) times the transposed weight (N, K) and its scale (N,), in x's dtype; sums are float32.

    Of many rows, and in float32, where products ought to be exact, weights are converted for the product.
    """
    if _product is not None and x.dtype == torch.bfloat16 and len(x) <= _FEW and x.shape[1] % _MULTIPLE == 0:
        product: torch.Tensor = _product(x.contiguous(), weight, scale)
        return product
    return (linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)


def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(..., N, K) float32."""
    return weight.float().mul_(scale.float().unsqueeze(-1))
