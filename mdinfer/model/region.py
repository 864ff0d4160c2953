"""Region heads: coordinates and sizes as input rows, and hidden states as coordinates and sizes."""

from __future__ import annotations

import torch
from torch import nn

from mdinfer.config import RegionConfig
from mdinfer.kernels import decode_coordinate, decode_size, fourier_features
from mdinfer.model.layers import LayerNorm, Linear, empty


class Region(nn.Module):
    """The Fourier frequencies stay in float32 whatever the model's dtype."""

    def __init__(self, config: RegionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.dtype = dtype
        self.coord_features = empty(1, config.coord_feat_dim // 2, dtype=torch.float32, device=device)
        self.size_features = empty(2, config.size_feat_dim // 2, dtype=torch.float32, device=device)
        self.coord_encoder = Linear(config.coord_feat_dim, config.dim, dtype=dtype, device=device)
        self.size_encoder = Linear(config.size_feat_dim, config.dim, dtype=dtype, device=device)
        self.coord_decoder = Linear(config.dim, config.coord_out_dim, dtype=dtype, device=device)
        self.size_decoder = Linear(config.dim, config.size_out_dim, dtype=dtype, device=device)
        self.ln = LayerNorm(config.dim, dtype=dtype, device=device)

    def encode_coordinates(self, values: torch.Tensor) -> torch.Tensor:
        """(R, D) of coordinates (R, 1) in 0..1."""
        out: torch.Tensor = self.coord_encoder(fourier_features(values, self.coord_features).to(self.dtype))
        return out

    def encode_sizes(self, values: torch.Tensor) -> torch.Tensor:
        """(R, D) of (width, height) pairs (R, 2) in 0..1."""
        out: torch.Tensor = self.size_encoder(fourier_features(values, self.size_features).to(self.dtype))
        return out

    def coordinate_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, bins) of hidden states (R, D) before the head's LayerNorm."""
        out: torch.Tensor = self.coord_decoder(self.ln(hidden))
        return out

    def size_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, 2, bins): width's, then height's."""
        out: torch.Tensor = self.size_decoder(self.ln(hidden))
        return out.view(hidden.shape[0], 2, -1)

    def decode_coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        return decode_coordinate(self.coordinate_logits(hidden))

    def decode_sizes(self, hidden: torch.Tensor) -> torch.Tensor:
        return decode_size(self.size_logits(hidden))
