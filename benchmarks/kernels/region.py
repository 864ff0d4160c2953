"""Region heads, and the decoder's input rows of every kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer.kernels import RegionHeads, TokenKind, ValueEncoder
from mdinfer.kernels._triton import embedding, region
from mdinfer.kernels.embedding import encode_values, input_embeddings_torch
from mdinfer.kernels.norm import layer_norm_torch
from mdinfer.kernels.region import decode_coordinate, decode_size

_D, _V, _BINS, _COORD_F, _SIZE_F = 2048, 51200, 1024, 128, 256
_VALUES_WHY = "exact, but for a rounding of h to the other side, which may let the second of two close bins win"
_INPUT_WHY = "bfloat16 results, and features kept in float32 where the twin's are too"


def cases() -> list[Case]:
    coord, size, text, image = TokenKind.COORD, TokenKind.SIZE, TokenKind.TEXT, TokenKind.IMAGE
    return [
        *(_values(name, kinds) for name, kinds in (
            ("1-coord", [coord]),
            ("1-size", [size]),
            ("8-text", [text] * 8),
            ("64-mixed", [coord, coord, size, text] * 16),
            ("256-mixed", [coord, coord, size, text] * 64),
        )),
        *(_inputs(name, kinds) for name, kinds in (
            ("1-text", [text]),
            ("1-coord", [coord]),
            ("1-size", [size]),
            ("64-mixed", [coord, coord, size, text] * 16),
            ("32-images", [text, *[image] * 31]),
            ("775-text", [text] * 770 + [coord] * 4 + [size]),
            ("775-prompt", [text, *[image] * 729, *[text] * 40, coord, coord, coord, coord, size]),
        )),
    ]  # fmt: skip


def _values(name: str, kinds: list[TokenKind]) -> Case:
    B = len(kinds)

    def inputs(device: torch.device) -> Inputs:
        heads = RegionHeads(
            norm_weight=randn(_D, device=device),
            norm_bias=randn(_D, device=device),
            coord_weight=randn(_BINS, _D, device=device, scale=_D**-0.5),
            coord_bias=randn(_BINS, device=device),
            size_weight=randn(2 * _BINS, _D, device=device, scale=_D**-0.5),
            size_bias=randn(2 * _BINS, device=device),
        )
        return randn(B, _D, device=device), _kinds(kinds, device), heads

    def twin(hidden: torch.Tensor, kinds: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
        """With h rounded as the kernel's is, and products in float32."""
        h = layer_norm_torch(hidden, heads.norm_weight, heads.norm_bias).float()
        coords = decode_coordinate(h @ heads.coord_weight.float().T + heads.coord_bias.float())
        sizes = h @ heads.size_weight.float().T + heads.size_bias.float()
        values = torch.zeros(B, 2, device=hidden.device)
        values[:, 0] = torch.where(kinds == TokenKind.COORD, coords, 0.0)
        return torch.where((kinds == TokenKind.SIZE)[:, None], decode_size(sizes.view(B, 2, -1)), values)

    def eager(hidden: torch.Tensor, _: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
        h = layer_norm_torch(hidden, heads.norm_weight, heads.norm_bias)
        return F.linear(h, heads.coord_weight, heads.coord_bias).argmax(dim=-1)

    coords, sizes = kinds.count(TokenKind.COORD), kinds.count(TokenKind.SIZE)
    weights = (_BINS if coords else 0) + (2 * _BINS if sizes else 0)
    return Case(
        op="region_values",
        shape=f"{name}-bf16",
        inputs=inputs,
        run=region.region_values,
        twin=twin,
        bound=0.1,
        why=_VALUES_WHY,
        rivals={"eager, coordinates of all rows, rounded logits": eager},
        bytes=2 * _D * (weights + B),
        flops=2 * _D * _BINS * (coords + 2 * sizes),
    )


def _inputs(name: str, kinds: list[TokenKind]) -> Case:
    T, images = len(kinds), kinds.count(TokenKind.IMAGE)

    def inputs(device: torch.device) -> Inputs:
        encoders = tuple(
            ValueEncoder(
                features=randn(n, F, device=device, dtype=torch.float32, scale=10.0),
                weight=randn(_D, 2 * F, device=device, scale=F**-0.5),
                bias=randn(_D, device=device),
            )
            for n, F in ((1, _COORD_F), (2, _SIZE_F))
        )
        values = torch.rand(T, 2, device=device)
        pixels = randn(images, _D, device=device) if images else None
        tokens = torch.zeros(T, dtype=torch.int64, device=device)
        return randn(_V, _D, device=device), tokens, _kinds(kinds, device), values, encoders, pixels

    def twin(
        wte: torch.Tensor,
        tokens: torch.Tensor,
        kinds: torch.Tensor,
        values: torch.Tensor,
        encoders: tuple[ValueEncoder, ...],
        pixels: torch.Tensor | None,
    ) -> torch.Tensor:
        coord, size = (
            ValueEncoder(features=e.features, weight=e.weight.float(), bias=e.bias.float()) for e in encoders
        )
        rows = None if pixels is None else pixels.float()
        return input_embeddings_torch(wte.float(), tokens, kinds, values, (coord, size), rows)

    weights = sum(2 * F for kind, F in ((TokenKind.COORD, _COORD_F), (TokenKind.SIZE, _SIZE_F)) if kind in kinds)
    return Case(
        op="input_embeddings",
        shape=f"{name}-bf16",
        inputs=inputs,
        run=embedding.input_embeddings,
        twin=twin,
        bound=4e-3,
        why=_INPUT_WHY,
        rivals={
            "torch index_select, no values": lambda wte, tokens, *_: wte.index_select(0, tokens),
            "eager, all rows coordinates": lambda wte, t, k, values, encoders, _: encode_values(
                values[:, :1], encoders[0]
            ),
        },
        bytes=2 * _D * (2 * T + 2 * weights),
    )


def _kinds(kinds: list[TokenKind], device: torch.device) -> torch.Tensor:
    return torch.tensor([int(kind) for kind in kinds], device=device)
