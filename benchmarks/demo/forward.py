"""The training forward: the engine's own modules and formulas, on rows of packed segments instead of a paged cache.

Same parameters as `mdinfer.model.Moondream`, so what is trained is what is exported. Differences are of speed only:
attention under a mask instead of pages, all experts computed with a weight of zero for those not chosen, and a local
map pooled by a matrix per tiling.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from mdinfer.kernels import TokenKind, pooled_map
from mdinfer.kernels.qkv import rope_table
from mdinfer.model.moe import ExpertMlp
from mdinfer.model.moondream import Moondream
from mdinfer.model.text import Block


def row_mask(group: torch.Tensor, segment: torch.Tensor, position: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(R, 1, T, T) bool, from (R, T) each: a position sees what its sequence has before it and its picture's block."""
    same = group[:, :, None] == group[:, None, :]
    own = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
    return (same & own & (position[:, None, :] < visible[:, :, None]))[:, None]


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
    h = block.ln(x)
    R, T, D = x.shape
    attention = block.attn
    qkv = attention.qkv(h)
    heads = attention.tau.alpha.shape[0]
    token = torch.tanh(F.linear(F.gelu(qkv), attention.tau.wqwv).float()).view(R, T, 2, heads)
    tau = token + (torch.sigmoid(attention.tau.alpha * log) + 0.5)[:, :, None]
    q, k, v = qkv.float().view(R, T, 3, heads, D // heads).unbind(2)
    q = _rotated(q * tau[:, :, 0, :, None], cos, sin)
    k = _rotated(k, cos, sin)
    v = v * tau[:, :, 1, :, None]
    q, k, v = (part.to(qkv.dtype).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(R, T, D)
    mlp = block.mlp
    if isinstance(mlp, ExpertMlp):
        made, unevenness = _experts(mlp, h)
    else:
        made, unevenness = mlp(h), torch.zeros((), device=x.device)
    return x + attention.proj(out) + made, unevenness


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    quarter = cos.shape[-1]
    first, second, rest = x[..., :quarter], x[..., quarter : 2 * quarter], x[..., 2 * quarter :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _experts(mlp: ExpertMlp, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All experts at once, weighted by the softmax over each token's chosen ones, and E * sum(share * probability)."""
    logits = mlp.router(h).float()
    E, twice, D = mlp.fc1.weight.shape
    values, chosen = logits.topk(mlp.experts_per_token, dim=-1)
    weights = torch.zeros_like(logits).scatter(-1, chosen, torch.softmax(values, dim=-1))
    up = F.linear(h, mlp.fc1.weight.view(E * twice, D)).view(*h.shape[:-1], E, twice)
    u, g = up.chunk(2, dim=-1)
    inner = F.gelu(u) * (g + 1) * weights[..., None].to(u.dtype)
    out = F.linear(inner.flatten(-2), mlp.fc2.weight.transpose(0, 1).reshape(D, -1))
    share = (weights > 0).float().flatten(0, -2).mean(0) / mlp.experts_per_token
    probability = torch.softmax(logits, dim=-1).flatten(0, -2).mean(0)
    return out, E * (share * probability).sum()


def see(model: Moondream, crops: torch.Tensor, tiles: torch.Tensor, tilings: list[tuple[int, int]]) -> torch.Tensor:
    """(pictures, positions, D) rows of pictures; arguments as in `batches.Batch`."""
    features = model.vision.crop_features(crops)
    config = model.config.vision
    pool = torch.stack([_pooling(tiling, config.grid, config.overlap_margin, tiles.shape[1] - 1) for tiling in tilings])
    whole = features[tiles[:, 0]]
    local = torch.bmm(pool.to(features.device, features.dtype), features[tiles[:, 1:]].flatten(1, 2))
    out: torch.Tensor = model.vision.proj_mlp(torch.cat((whole, local.to(whole.dtype)), dim=-1))
    return out


@cache
def _pooling(tiling: tuple[int, int], grid: int, margin: int, most: int) -> torch.Tensor:
    """(G * G, most * G * G): `pooled_map` of that tiling as a matrix on the tiles' features laid end to end."""
    count, positions = tiling[0] * tiling[1], grid * grid
    units = torch.eye(count * positions).view(count, positions, count * positions)
    return F.pad(pooled_map(units, tiling, margin), (0, (most - count) * positions))


def embed(
    model: Moondream, tokens: torch.Tensor, kinds: torch.Tensor, values: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """(R, T, D) input rows; images (n, positions, D) in the order of their positions."""
    x = F.embedding(tokens, model.text.wte).flatten(0, 1)
    kinds, values = kinds.flatten(), values.flatten(0, 1)
    for kind, rows in (
        (TokenKind.IMAGE, lambda at: images.flatten(0, 1)),
        (TokenKind.COORD, lambda at: model.region.encode_coordinates(values[at, :1])),
        (TokenKind.SIZE, lambda at: model.region.encode_sizes(values[at])),
    ):
        at = (kinds == kind).nonzero()[:, 0]
        if len(at):
            x = x.index_copy(0, at, rows(at).to(x.dtype))
    return x.view(*tokens.shape, -1)


class CellHeads(nn.Module):
    """Training only: what each picture position shows, read off the rows that the vision tower gives the decoder."""

    def __init__(self, dim: int, kinds: int, colours: int) -> None:
        super().__init__()
        self.sizes = (kinds + 1, colours + 1, 4, 1)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, sum(self.sizes))

    def forward(self, images: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        kind, colour, box, centre = torch.split(self.out(self.norm(images)).float(), self.sizes, dim=-1)
        covered = cells[..., 0] > 0
        loss = F.cross_entropy(kind.flatten(0, 1), cells[..., 0].flatten().long())
        loss = loss + F.cross_entropy(colour.flatten(0, 1), cells[..., 1].flatten().long())
        loss = loss + F.binary_cross_entropy_with_logits(
            centre[..., 0], cells[..., 6], pos_weight=torch.tensor(4.0, device=cells.device)
        )
        return loss + 4 * F.l1_loss(box[covered], cells[..., 2:6][covered])
