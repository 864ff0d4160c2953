"""LayerNorm over the last dimension: y = (x - mean) / sqrt(var + eps) * weight + bias, moments in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-5


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Normalise the rows of `x` (..., D); weight and bias are (D,); the result has x's shape and dtype."""
    assert x.shape[-1:] == weight.shape == bias.shape, (x.shape, weight.shape, bias.shape)
    return F.layer_norm(x, weight.shape, weight, bias, eps)
