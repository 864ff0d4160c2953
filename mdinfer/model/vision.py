"""The vision tower: crops of a picture to the rows that stand for it in the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mdinfer.config import VisionConfig
from mdinfer.kernels import Float8Rows, crop_attention, crop_patches, joined_map, linear_residual
from mdinfer.model.layers import LayerNorm, Linear, Mlp, empty

_ALIGNMENT = 16  # bytes; the rows of a product's operands


class PatchEmbedding(nn.Module):
    """Linear over patches of pixels, whose rows are padded with zeros to a multiple of 16 bytes."""

    def __init__(self, config: VisionConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.patch, step = config.enc_patch_size, _ALIGNMENT // dtype.itemsize
        width = -(-config.patch_dim // step) * step
        # Checkpoints fill the parameter, a view of the columns that the patches have.
        self.padded = torch.zeros(config.enc_dim, width, dtype=dtype, device=device)
        self.weight = nn.Parameter(self.padded[:, : config.patch_dim], requires_grad=False)
        self.bias = empty(config.enc_dim, dtype=dtype, device=device)

    def forward(self, crops: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(N, G * G, C) of uint8 crops; positions (1, G * G, C) are added."""
        patches = crop_patches(crops, self.patch, self.padded.dtype, self.padded.shape[1])
        return linear_residual(patches, self.padded, self.bias, positions)


class VisionAttention(nn.Module):
    def __init__(
        self, config: VisionConfig, *, dtype: torch.dtype, linear_dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.heads = config.enc_n_heads
        self.qkv = Linear(config.enc_dim, 3 * config.enc_dim, dtype=dtype, device=device, kept=linear_dtype)
        self.proj = Linear(config.enc_dim, config.enc_dim, dtype=dtype, device=device, kept=linear_dtype)

    def forward(self, h: torch.Tensor | Float8Rows, residual: torch.Tensor) -> torch.Tensor:
        return self.proj.residual(crop_attention(self.qkv(h), self.heads), residual)


class VisionBlock(nn.Module):
    """x <- x + attn(ln1(x));  x <- x + mlp(ln2(x))."""

    def __init__(
        self, config: VisionConfig, *, dtype: torch.dtype, linear_dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        C = config.enc_dim
        self.ln1 = LayerNorm(C, dtype=dtype, device=device)
        self.attn = VisionAttention(config, dtype=dtype, linear_dtype=linear_dtype, device=device)
        self.ln2 = LayerNorm(C, dtype=dtype, device=device)
        self.mlp = Mlp(C, config.enc_ff_dim, C, dtype=dtype, device=device, kept=linear_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.ln1.rows(x, self.attn.qkv), x)
        out: torch.Tensor = self.mlp(self.ln2.rows(x, self.mlp.fc1), x)
        return out


class VisionTower(nn.Module):
    """`linear_dtype` is that of the weights of all products but the patches'."""

    def __init__(
        self, config: VisionConfig, *, dtype: torch.dtype, linear_dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_emb = PatchEmbedding(config, dtype=dtype, device=device)
        self.pos_emb = empty(1, config.positions, config.enc_dim, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(
            VisionBlock(config, dtype=dtype, linear_dtype=linear_dtype, device=device)
            for _ in range(config.enc_n_layers)
        )
        self.post_ln = LayerNorm(config.enc_dim, dtype=dtype, device=device)
        self.proj_mlp = Mlp(
            2 * config.enc_dim,
            config.proj_inner_dim,
            config.proj_out_dim,
            dtype=dtype,
            device=device,
            kept=linear_dtype,
        )

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, positions, C) of uint8 crops (N, side, side, 3)."""
        x = self.patch_emb(crops, self.pos_emb)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.post_ln(x)
        return out

    def project(self, pictures: Sequence[tuple[torch.Tensor, tuple[int, int]]]) -> list[torch.Tensor]:
        """(positions, text dim) of each picture, in memory of its own: one that is kept keeps no other.

        A picture is the features of its crops, the global one first, then the tiles row by row, and its tiling.
        """
        _, positions, C = pictures[0][0].shape
        joined = pictures[0][0].new_empty(len(pictures), positions, 2 * C)
        for (features, tiling), out in zip(pictures, joined, strict=True):
            joined_map(features, tiling, self.config.overlap_margin, out)
        rows: torch.Tensor = self.proj_mlp(joined.flatten(0, 1)).view(len(pictures), positions, -1)
        return [rows[0]] if len(rows) == 1 else [picture.clone() for picture in rows]

    def forward(
        self,
        crops: torch.Tensor,
        tilings: Sequence[tuple[int, int]],
        crops_per_pass: int,
        see: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Encode several pictures whose crops are stacked; at most `crops_per_pass` go through at once.

        `see` may stand in for `crop_features`.
        """
        passes = [(see or self.crop_features)(part) for part in torch.split(crops, crops_per_pass)]
        features = torch.cat(passes) if len(passes) > 1 else passes[0]
        parts = torch.split(features, [1 + rows * cols for rows, cols in tilings])
        pictures = list(zip(parts, tilings, strict=True))
        step = max(1, crops_per_pass // 2)  # pictures of as many crops at least
        return [out for i in range(0, len(pictures), step) for out in self.project(pictures[i : i + step])]
