"""The vision tower: crops of a picture to the rows that stand for it in the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mdinfer.config import VisionConfig
from mdinfer.kernels import crop_attention, crop_patches, pooled_map
from mdinfer.model.layers import LayerNorm, Linear, Mlp, empty


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.heads = config.enc_n_heads
        self.qkv = Linear(config.enc_dim, 3 * config.enc_dim, dtype=dtype, device=device)
        self.proj = Linear(config.enc_dim, config.enc_dim, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(crop_attention(self.qkv(x), self.heads))
        return out


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.enc_dim, dtype=dtype, device=device)
        self.attn = VisionAttention(config, dtype=dtype, device=device)
        self.ln2 = LayerNorm(config.enc_dim, dtype=dtype, device=device)
        self.mlp = Mlp(config.enc_dim, config.enc_ff_dim, config.enc_dim, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        out: torch.Tensor = x + self.mlp(self.ln2(x))
        return out


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.patch_emb = Linear(config.patch_dim, config.enc_dim, dtype=dtype, device=device)
        self.pos_emb = empty(1, config.positions, config.enc_dim, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(VisionBlock(config, dtype=dtype, device=device) for _ in range(config.enc_n_layers))
        self.post_ln = LayerNorm(config.enc_dim, dtype=dtype, device=device)
        self.proj_mlp = Mlp(2 * config.enc_dim, config.proj_inner_dim, config.proj_out_dim, dtype=dtype, device=device)

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, positions, C) of uint8 crops (N, side, side, 3)."""
        x = self.patch_emb(crop_patches(crops, self.config.enc_patch_size, self.dtype)) + self.pos_emb
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.post_ln(x)
        return out

    def project(self, features: torch.Tensor, tiling: tuple[int, int]) -> torch.Tensor:
        """(positions, text dim): one picture's crops, the global one first, then the tiles row by row."""
        local = pooled_map(features[1:], tiling, self.config.overlap_margin)
        out: torch.Tensor = self.proj_mlp(torch.cat((features[0], local), dim=-1))
        return out

    def forward(
        self, crops: torch.Tensor, tilings: Sequence[tuple[int, int]], crops_per_pass: int
    ) -> list[torch.Tensor]:
        """Encode several pictures whose crops are stacked; at most `crops_per_pass` go through at once."""
        features = torch.cat([self.crop_features(part) for part in torch.split(crops, crops_per_pass)])
        counts = [1 + rows * cols for rows, cols in tilings]
        return [self.project(f, tiling) for f, tiling in zip(torch.split(features, counts), tilings, strict=True)]
