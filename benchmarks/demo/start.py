"""Weights to begin training with."""

from __future__ import annotations

import math

import torch

from mdinfer.config import ModelConfig
from mdinfer.model.moondream import Moondream


def fresh_model(config: ModelConfig, seed: int) -> Moondream:
    """A model in float32 whose parameters can be trained, but for the Fourier frequencies."""
    torch.manual_seed(seed)
    model = Moondream(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        p.requires_grad_(not name.endswith("_features"))
        _fill(name, p.data)
    _fill_by_design(model)
    return model


def _fill(name: str, p: torch.Tensor) -> None:
    if "tau" in name or name.endswith(("bias", "lm_head.weight", "attn.proj.weight")):
        p.zero_()
    elif ".ln" in name or "post_ln" in name:
        p.fill_(1)
    elif name.endswith("fc2.weight") and ".blocks." in name:
        p.zero_()
    elif name == "text.wte":
        p.normal_(0, 0.3)
    else:
        p.normal_(0, p.shape[-1] ** -0.5)


@torch.no_grad()
def _fill_by_design(model: Moondream) -> None:
    """Patches by their lowest cosine waves, places by sines, numbers by waves from half a turn to 32 turns."""
    vision, region = model.vision, model.region
    patch, channels = vision.config.enc_patch_size, vision.config.in_channels
    waves = torch.cos(math.pi / patch * torch.outer(torch.arange(patch), torch.arange(patch) + 0.5)) / patch**0.5
    order = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    for i in range(vision.config.enc_dim):
        u, v = order[i // channels]
        plane = torch.zeros(channels, patch, patch)
        plane[i % channels] = torch.outer(waves[u], waves[v]) * (1.0 if u or v else 0.15)
        vision.patch_emb.weight[i] = plane.flatten()
    grid, quarter = vision.config.grid, vision.config.enc_dim // 4
    angles = torch.outer((torch.arange(grid) + 0.5) / grid, math.pi * torch.logspace(-1, 3, quarter, 2))
    rows, columns = angles[:, None].expand(grid, grid, -1), angles[None].expand(grid, grid, -1)
    places = torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=-1)
    vision.pos_emb.copy_(0.4 * places.reshape(1, grid * grid, -1))
    region.coord_features.copy_(torch.logspace(-1, 5, region.coord_features.shape[1], 2)[None].bfloat16())
    half = region.size_features.shape[1] // 2
    each = torch.logspace(-1, 4, half, 2).bfloat16().float()
    region.size_features.zero_()
    region.size_features[0, :half], region.size_features[1, half:] = each, each
