"""LayerNorm over the last dimension, moments in float32, alone or behind the sum of a layer's branches.

layer_norm:      y = (x - mean) / sqrt(var + eps) * weight + bias
add_layer_norm:  s = x + a + b, summed in float32 and rounded once;  y = layer_norm(s)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch

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
