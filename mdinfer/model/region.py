"""Region heads: coordinates and sizes as input rows, and hidden states as coordinates and sizes."""

from __future__ import annotations

import torch
from torch import nn

from mdinfer.config import RegionConfig
from mdinfer.kernels import RegionHeads, ValueEncoder
from mdinfer.model.layers import LayerNorm, Linear, empty


class Region(nn.Module):
    """The Fourier frequencies stay in float32 whatever the model's dtype."""

    def __init__(self, config: RegionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.coord_features = empty(1, config.coord_feat_dim // 2, dtype=torch.float32, device=device)
        self.size_features = empty(2, config.size_feat_dim // 2, dtype=torch.float32, device=device)
        self.coord_encoder = Linear(config.coord_feat_dim, config.dim, dtype=dtype, device=device)
        self.size_encoder = Linear(config.size_feat_dim, config.dim, dtype=dtype, device=device)
        self.coord_decoder = Linear(config.dim, config.coord_out_dim, dtype=dtype, device=device)
        self.size_decoder = Linear(config.dim, config.size_out_dim, dtype=dtype, device=device)
        self.ln = LayerNorm(config.dim, dtype=dtype, device=device)

    def encoders(self) -> tuple[ValueEncoder, ValueEncoder]:
        """Of coordinates and of sizes."""
        coord, size = self.coord_encoder, self.size_encoder
        return (
            ValueEncoder(features=self.coord_features, weight=coord.weight, bias=coord.bias),
            ValueEncoder(features=self.size_features, weight=size.weight, bias=size.bias),
        )

    def heads(self) -> RegionHeads:
        return RegionHeads(
            norm_weight=self.ln.weight,
            norm_bias=self.ln.bias,
            coord_weight=self.coord_decoder.weight,
            coord_bias=self.coord_decoder.bias,
            size_weight=self.size_decoder.weight,
            size_bias=self.size_decoder.bias,
        )
