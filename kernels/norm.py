"""LayerNorm over the last dimension, moments in float32, alone or behind the sum of a layer's branches.

layer_norm:      y = (x - mean) / sqrt(var + eps) * weight + bias
layer_norm_rows: y for a product with e4m3 weights to take: many rows are rounded to e4m3, not to x's dtype
add_layer_norm:  s = x + a + b, summed in float32 and rounded once;  y = layer_norm(s)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch
from mdinfer.kernels.quantise import FEW_ROWS, Float8Rows, quantise_rows_torch

EPS = 1e-5


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Normalise the rows of `x` (..., D); weight and bias are (D,); the result has x's shape and dtype."""
    assert x.shape[-1:] == weight.shape == bias.shape, (x.shape, weight.shape, bias.shape)
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import norm

        return norm.layer_norm(x, weight, bias, eps)
    return layer_norm_torch(x, weight, bias, eps)


def layer_norm_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """The torch body of `layer_norm`."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def layer_norm_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS
) -> torch.Tensor | Float8Rows:
    """`layer_norm`, in e4m3 where it has more than FEW_ROWS rows."""
    if x.shape[:-1].numel() <= FEW_ROWS:
        return layer_norm(x, weight, bias, eps)
    assert x.shape[-1:] == weight.shape == bias.shape, (x.shape, weight.shape, bias.shape)
    rows = x.reshape(-1, x.shape[-1])
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import norm

        q, scale = norm.layer_norm_rows(rows, weight, bias, eps)
    else:
        q, scale = layer_norm_rows_torch(rows, weight, bias, eps)
    return Float8Rows(q=q, scale=scale, shape=x.shape, dtype=x.dtype)


def layer_norm_rows_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows` of `layer_norm`, x (R, D), all in float32."""
    return quantise_rows_torch(F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps))


def add_layer_norm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, y) of three summands (..., D) of one shape and dtype, which both results have too."""
    assert x.shape == a.shape == b.shape and x.shape[-1:] == weight.shape == bias.shape, (x.shape, a.shape, b.shape)
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import norm

        return norm.add_layer_norm(x, a, b, weight, bias, eps)
    return add_layer_norm_torch(x, a, b, weight, bias, eps)


def add_layer_norm_torch(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The torch body of `add_layer_norm`."""
    total = x + a + b if x.dtype == torch.float32 else (x.float() + a + b).to(x.dtype)
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)
