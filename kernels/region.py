"""Numbers in and out of the model: Fourier features of coordinates and sizes, and the bins they decode from."""

from __future__ import annotations

import math

import torch


def fourier_features(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(R, 2F) float32: [cos f, sin f], f = 2 pi values weight; values (R, n) in 0..1, weight (n, F) float32."""
    angle = (2 * math.pi) * (values.float() @ weight.float())
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def decode_coordinate(logits: torch.Tensor) -> torch.Tensor:
    """(R,) float32 in [0, 1): the likeliest bin of logits (R, bins), over the number of bins."""
    return logits.argmax(dim=-1).float() / logits.shape[-1]


def decode_size(logits: torch.Tensor) -> torch.Tensor:
    """(R, 2) float32, width and height: 2^(10 bin / (bins - 1) - 10); logits (R, 2, bins)."""
    return torch.exp2(logits.argmax(dim=-1).float() / (logits.shape[-1] - 1) * 10 - 10)
