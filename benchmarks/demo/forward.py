"""The training forward: the engine's own modules and formulas, on rows of packed segments instead of a paged cache.

Same parameters as `mdinfer.model.Moondream`, so what is trained is what is exported; but torch's own operations
throughout, for the engine's kernels have no backward pass. Attention goes under a mask instead of over pages, and the
local map is pooled by a matrix per tiling. Attention is spelled out, for torch 2.13's fused one is half as fast here on
a CPU, forward and backward in bfloat16 (13 rows of 256, 3 heads of 64).
"""

from __future__ import annotations

import math
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from mdinfer.kernels import TokenKind, crop_patches, joined_map
from mdinfer.kernels.embedding import fourier_features
from mdinfer.kernels.qkv import rope_table
from mdinfer.model.layers import LayerNorm, Mlp
from mdinfer.model.moe import ExpertMlp
from mdinfer.model.moondream import Moondream
from mdinfer.model.text import Block
from mdinfer.model.vision import VisionBlock, VisionTower

NEVER = -1e4
_CENTRE_BINS = 64


def row_mask(group: torch.Tensor, segment: torch.Tensor, position: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(R, 1, T, T) to add to scores, 0 or NEVER, from (R, T) each.

    A position sees what its sequence has before it, and its picture's block.
    """
    same = group[:, :, None] == group[:, None, :]
    own = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
    seen = same & own & (position[:, None, :] < visible[:, :, None])
    return torch.where(seen, 0.0, NEVER)[:, None]


class Places:
    """Rotary angles and ln(p + 1) of positions (R, T)."""

    def __init__(self, position: torch.Tensor, head_dim: int) -> None:
        table = rope_table(int(position.max()) + 1, head_dim, position.device)[position]
        self.cos, self.sin = table[:, :, None, 0], table[:, :, None, 1]
        self.log = torch.log(position.float() + 1)[..., None]


def decode(model: Moondream, x: torch.Tensor, places: Places, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (R, T, D) before the head's LayerNorm, and the router's balance loss."""
    balance = torch.zeros((), device=x.device)
    for block in model.text.blocks:
        assert isinstance(block, Block)
        x, unevenness = text_block(block, x, places.cos, places.sin, places.log, mask)
        balance = balance + unevenness
    return x, balance


def text_block(
    block: Block, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, log: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    h = norm(block.ln, x)
    R, T, D = x.shape
    attention = block.attn
    qkv = attention.qkv(h)
    heads = attention.tau.alpha.shape[0]
    token = torch.tanh(F.linear(F.gelu(qkv), attention.tau.wqwv).float()).view(R, T, 2, heads)
    tau = token + (torch.sigmoid(attention.tau.alpha * log) + 0.5)[:, :, None]
    tau_q, tau_v = tau.to(qkv.dtype)[..., None].unbind(2)
    q, k, v = qkv.view(R, T, 3, heads, D // heads).unbind(2)
    q = _rotated(q * (tau_q * (D // heads) ** -0.5), cos, sin).transpose(1, 2)
    k, v = _rotated(k, cos, sin).transpose(1, 2), (v * tau_v).transpose(1, 2)
    out = _attend(q, k, v, mask).transpose(1, 2).reshape(R, T, D)
    mlp = block.mlp
    if isinstance(mlp, ExpertMlp):
        made, unevenness = _experts(mlp, h)
    else:
        made, unevenness = _mlp(cast("Mlp", mlp), h), torch.zeros((), device=x.device)
    return x + attention.proj(out) + made, unevenness


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    quarter, cos, sin = cos.shape[-1], cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :quarter], x[..., quarter : 2 * quarter], x[..., 2 * quarter :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(..., T, K) each; q comes scaled."""
    scores = torch.matmul(q, k.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return torch.matmul(torch.softmax(scores, -1, dtype=scores.dtype), v)


def _experts(mlp: ExpertMlp, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts on the tokens that chose them, and the balance loss E * sum(share * probability)."""
    x, A = h.flatten(0, -2), mlp.experts_per_token
    logits = mlp.router(x).float()
    E = logits.shape[-1]
    values, chosen = logits.topk(A, dim=-1)
    weights = torch.softmax(values, dim=-1).flatten()
    order = torch.argsort(chosen.flatten(), stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=E)
    made = []
    for e, rows in enumerate(torch.split(x.index_select(0, order // A), counts.tolist())):
        u, g = F.linear(rows, mlp.fc1.weight[e]).chunk(2, dim=-1)
        made.append(F.linear(F.gelu(u) * (g + 1), mlp.fc2.weight[e]))
    y = torch.cat(made) * weights[order, None].to(made[0].dtype)
    out = torch.zeros(x.shape, dtype=y.dtype, device=x.device).index_add(0, order // A, y)
    balance = E * (counts / counts.sum() * torch.softmax(logits, dim=-1).mean(0)).sum()
    return out.view(h.shape), balance


def see(model: Moondream, crops: torch.Tensor, tiles: torch.Tensor, tilings: list[tuple[int, int]]) -> torch.Tensor:
    """(pictures, positions, D) rows of pictures; arguments as in `batches.Batch`."""
    config = model.config.vision
    features = _crop_features(model.vision, crops)
    pool = torch.stack([_pooling(tiling, config.grid, config.overlap_margin, tiles.shape[1] - 1) for tiling in tilings])
    whole = features[tiles[:, 0]]
    local = torch.bmm(pool.to(features.device, features.dtype), features[tiles[:, 1:]].flatten(1, 2))
    return _mlp(model.vision.proj_mlp, torch.cat((whole, local.to(whole.dtype)), dim=-1))


def _crop_features(tower: VisionTower, crops: torch.Tensor) -> torch.Tensor:
    """As the tower's own, with attention spelled out."""
    embedding = tower.patch_emb
    patches = crop_patches(crops, embedding.patch, embedding.weight.dtype, tower.config.patch_dim)
    x = F.linear(patches, embedding.weight, embedding.bias) + tower.pos_emb
    heads = tower.config.enc_n_heads
    for block in tower.blocks:
        assert isinstance(block, VisionBlock)
        N, rows, C = x.shape
        q, k, v = block.attn.qkv(norm(block.ln1, x)).view(N, rows, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
        out = _attend(q * (C // heads) ** -0.5, k, v, None)
        x = x + block.attn.proj(out.transpose(1, 2).reshape(N, rows, C))
        x = x + _mlp(block.mlp, norm(block.ln2, x))
    return norm(tower.post_ln, x)


@cache
def _pooling(tiling: tuple[int, int], grid: int, margin: int, most: int) -> torch.Tensor:
    """(G * G, most * G * G): the local half of `joined_map` as a matrix on the tiles' features laid end to end."""
    count, positions = tiling[0] * tiling[1], grid * grid
    units = torch.eye(count * positions).view(count, positions, count * positions)
    local = joined_map(torch.cat((torch.zeros_like(units[:1]), units)), tiling, margin)[:, count * positions :]
    return F.pad(local, (0, (most - count) * positions))


def embed(
    model: Moondream, tokens: torch.Tensor, kinds: torch.Tensor, values: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """(R, T, D) input rows; images (n, positions, D) in the order of their positions."""
    x = F.embedding(tokens, model.text.wte).flatten(0, 1)
    kinds, values = kinds.flatten(), values.flatten(0, 1)
    for kind in (TokenKind.IMAGE, TokenKind.COORD, TokenKind.SIZE):
        at = (kinds == kind).nonzero()[:, 0]
        if not len(at):
            continue
        if kind == TokenKind.IMAGE:
            rows = images.flatten(0, 1)
        else:
            encoder = model.region.encoders()[kind == TokenKind.SIZE]
            features = fourier_features(values[at, : len(encoder.features)], encoder.features)
            rows = F.linear(features, encoder.weight, encoder.bias)
        x = x.index_copy(0, at, rows.to(x.dtype))
    return x.view(*tokens.shape, -1)


def token_logits(model: Moondream, hidden: torch.Tensor) -> torch.Tensor:
    """(n, V) of hidden states (n, D) before the head's LayerNorm."""
    head = model.text.lm_head
    return F.linear(norm(model.text.post_ln, hidden), head.weight, head.bias)


def value_logits(model: Moondream, hidden: torch.Tensor, kind: TokenKind) -> torch.Tensor:
    """(n, 1, bins) of coordinates, or (n, 2, bins) of widths and heights."""
    region = model.region
    head = region.coord_decoder if kind == TokenKind.COORD else region.size_decoder
    logits = F.linear(norm(region.ln, hidden), head.weight, head.bias)
    return logits.view(len(hidden), 1 if kind == TokenKind.COORD else 2, -1)


def norm(layer: LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, layer.weight.shape, layer.weight, layer.bias)


def _mlp(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    inner = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias), approximate="tanh")
    return F.linear(inner, mlp.fc2.weight, mlp.fc2.bias)


def gaussian_loss(logits: torch.Tensor, bins: torch.Tensor, spread: float) -> torch.Tensor:
    """Mean cross entropy of logits (..., B) against Gaussians around bins (...), less ln(spread), so that near misses
    cost less than far ones.
    """
    every = torch.arange(logits.shape[-1], device=logits.device)
    soft = torch.exp(-((every - bins[..., None]) ** 2) / (2 * spread**2)) + 1e-9
    soft = soft / soft.sum(-1, keepdim=True)
    return -(soft * torch.log_softmax(logits, -1)).sum(-1).mean() - math.log(spread)


class CellHeads(nn.Module):
    """Training only: what each picture position shows, read off the rows that the vision tower gives the decoder, and
    what the picture's background is: of words alone, 5,000 steps did not learn to see that.

    Centres are learned twice, as numbers and as bins: the region heads decode bins, which cannot be read off a number.
    """

    def __init__(self, dim: int, kinds: int, colours: int, grounds: int) -> None:
        super().__init__()
        self.sizes = [kinds + 1, colours + 1, 4, 1]
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, sum(self.sizes))
        self.centre = nn.Linear(dim, 2 * _CENTRE_BINS)
        self.ground = nn.Linear(dim, grounds)

    def forward(self, images: torch.Tensor, cells: torch.Tensor, grounds: torch.Tensor) -> torch.Tensor:
        h = self.norm(images)
        kind, colour, box, centre = torch.split(self.out(h).float(), self.sizes, dim=-1)
        covered = cells[..., 0] != 0
        loss = F.cross_entropy(kind.flatten(0, 1), cells[..., 0].flatten().long(), ignore_index=-1)
        loss = loss + F.cross_entropy(colour.flatten(0, 1), cells[..., 1].flatten().long(), ignore_index=-1)
        loss = loss + F.binary_cross_entropy_with_logits(
            centre[..., 0], cells[..., 6], pos_weight=torch.tensor(4.0, device=cells.device)
        )
        loss = loss + 4 * F.l1_loss(box[covered], cells[..., 2:6][covered])
        every = self.ground(h).float().transpose(1, 2)
        loss = loss + 0.5 * F.cross_entropy(every, grounds[:, None].expand(-1, every.shape[-1]))
        bins = self.centre(h[covered]).float().view(-1, 2, _CENTRE_BINS)
        return loss + 0.2 * gaussian_loss(bins, cells[..., 2:4][covered] * _CENTRE_BINS, 0.75)
