"""The dense product y = x W^T + b.

It stays with the vendor's library on every device; what is here is how a CPU's libraries want to be asked.

float32 (MKL): up to 4 rows on a weight of half a million entries or more are multiplied as W x^T. There W, which comes
from memory, is read once for all of them by all cores: 1.2 to 3 times the speed of x W^T (torch 2.13, 2 cores of an
EPYC with AVX-512, weights of 768 x 768 to 6144 x 2048 that are not in its caches). A single row goes as two, since its
matrix-vector product keeps one core busy. Weights that stay in the caches, and more rows, are up to 4 times as fast as
x W^T.

bfloat16 (oneDNN): a product is compiled for each new count of rows, for about 0.5 ms on the same machine, and experts
get another count each time; beyond 16 rows the count is rounded up to a multiple of 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.kernels.packed import linear_packed

_FEW_ROWS = 4
_LARGE_WEIGHT = 1 << 19  # entries
_COMPILED_ROWS, _ROW_STEP = 16, 32


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., outputs) of x (..., inputs), weight (outputs, inputs), bias (outputs,) or None.

    On a CPU the weight may be one that `mdinfer.kernels.packed` has packed.
    """
    product = linear_packed if weight.is_mkldnn else F.linear
    if x.dim() != 2 or x.device.type != "cpu":
        return product(x, weight, bias)
    rows = x.shape[0]
    if x.dtype == torch.bfloat16:
        if rows > _COMPILED_ROWS and rows % _ROW_STEP:
            return product(F.pad(x, (0, 0, 0, -rows % _ROW_STEP)), weight, bias)[:rows]
        return product(x, weight, bias)
    if x.dtype != torch.float32 or not 0 < rows <= _FEW_ROWS or weight.numel() < _LARGE_WEIGHT:
        return F.linear(x, weight, bias)
    if rows == 1:
        x = x.expand(2, -1).contiguous()
    y = torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())
    return y[:, :rows].t().contiguous()
