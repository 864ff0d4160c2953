"""Numbers out of the model: the likeliest bin of a hidden state under a region head, and the value it stands for.

h = LayerNorm(hidden);  a coordinate: bin = argmax(h W^T + b), bin / bins;  a size: the same for width and height,
2^(10 bin / (bins - 1) - 10). h is rounded to the model's dtype, the logits stay float32: in bfloat16 near ones would
be equal. The lower of equal bins wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mdinfer.kernels import dispatch
from mdinfer.kernels.embedding import TokenKind
from mdinfer.kernels.linear import linear
from mdinfer.kernels.norm import layer_norm


@dataclass(frozen=True, kw_only=True)
class RegionHeads:
    """Weights in the model's dtype: norm (D,), coord (bins, D), size (2 * bins, D), width's rows first; and biases."""

    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    coord_weight: torch.Tensor
    coord_bias: torch.Tensor
    size_weight: torch.Tensor
    size_bias: torch.Tensor


def region_values(hidden_BD: torch.Tensor, kinds_B: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
    """(B, 2) float32 by each row's TokenKind: a coordinate in column 0, a size, or zeros.

    A row of kind COORD or SIZE that holds a NaN gives some bin's value, or NaN.
    """
    assert kinds_B.shape == hidden_BD.shape[:1] and heads.norm_weight.shape == hidden_BD.shape[1:], hidden_BD.shape
    if dispatch.compiled(hidden_BD):
        from mdinfer.kernels._triton import region

        return region.region_values(hidden_BD, kinds_B, heads)
    return region_values_torch(hidden_BD, kinds_B, heads)


def region_values_torch(hidden_BD: torch.Tensor, kinds_B: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
    """The torch body of `region_values`."""
    values = torch.zeros(hidden_BD.shape[0], 2, device=hidden_BD.device)
    coord, size = kinds_B == TokenKind.COORD, kinds_B == TokenKind.SIZE
    if bool(coord.any()):
        values[coord, 0] = decode_coordinate(coordinate_logits(hidden_BD[coord], heads))
    if bool(size.any()):
        values[size] = decode_size(size_logits(hidden_BD[size], heads))
    return values


def coordinate_logits(hidden: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
    """(R, bins) float32 of hidden states (R, D)."""
    return _logits(hidden, heads, heads.coord_weight, heads.coord_bias)


def size_logits(hidden: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
    """(R, 2, bins) float32: width's, then height's."""
    return _logits(hidden, heads, heads.size_weight, heads.size_bias).view(hidden.shape[0], 2, -1)


def _logits(hidden: torch.Tensor, heads: RegionHeads, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    h = layer_norm(hidden, heads.norm_weight, heads.norm_bias)
    return linear(h.float(), weight.float(), bias.float())


def decode_coordinate(logits: torch.Tensor) -> torch.Tensor:
    """(R,) float32 in [0, 1): the likeliest bin of logits (R, bins), over the number of bins."""
    return logits.argmax(dim=-1).float() / logits.shape[-1]


def decode_size(logits: torch.Tensor) -> torch.Tensor:
    """(R, 2) float32, width and height: 2^(10 bin / (bins - 1) - 10); logits (R, 2, bins)."""
    return torch.exp2(logits.argmax(dim=-1).float() / (logits.shape[-1] - 1) * 10 - 10)
