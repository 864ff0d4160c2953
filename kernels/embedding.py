"""The decoder's input rows: a token's embedding, or in its place an image position, a coordinate or a size.

A coordinate x, or a size (w, h), all in 0..1, is encoded as  weight [cos f, sin f] + bias,  f = 2 pi x W,  W (1, F)
or (2, F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch

from mdinfer.kernels import dispatch
from mdinfer.kernels.linear import linear


class TokenKind(IntEnum):
    """Where a position's input row comes from."""

    TEXT = 0
    COORD = 1
    SIZE = 2
    IMAGE = 3


@dataclass(frozen=True, kw_only=True)
class ValueEncoder:
    """features (n, F) float32, n numbers a value; weight (D, 2F) and bias (D,) in the model's dtype."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def input_embeddings(
    wte_VD: torch.Tensor,
    tokens_T: torch.Tensor,
    kinds_T: torch.Tensor | None = None,
    values_T2: torch.Tensor | None = None,
    encoders: tuple[ValueEncoder, ValueEncoder] | None = None,
    images_MD: torch.Tensor | None = None,
) -> torch.Tensor:
    """(T, D) in the table's dtype, by each position's TokenKind; without `kinds_T` all are text.

    tokens int64; values float32, a coordinate in column 0, or a size; encoders of coordinates and of sizes; images,
    the rows of the M positions of kind IMAGE, in order, or None where there are none.
    """
    if kinds_T is None:
        return wte_VD.index_select(0, tokens_T)
    assert values_T2 is not None and encoders is not None
    assert kinds_T.shape == tokens_T.shape and values_T2.shape == (*tokens_T.shape, 2), (kinds_T.shape, values_T2.shape)
    assert images_MD is None or images_MD.shape[1] == wte_VD.shape[1], images_MD.shape
    if dispatch.compiled(wte_VD):
        from mdinfer.kernels._triton import embedding

        return embedding.input_embeddings(wte_VD, tokens_T, kinds_T, values_T2, encoders, images_MD)
    return input_embeddings_torch(wte_VD, tokens_T, kinds_T, values_T2, encoders, images_MD)


def input_embeddings_torch(
    wte_VD: torch.Tensor,
    tokens_T: torch.Tensor,
    kinds_T: torch.Tensor,
    values_T2: torch.Tensor,
    encoders: tuple[ValueEncoder, ValueEncoder],
    images_MD: torch.Tensor | None,
) -> torch.Tensor:
    """The torch body of `input_embeddings`."""
    x_TD = wte_VD.index_select(0, tokens_T)
    for kind, encoder in zip((TokenKind.COORD, TokenKind.SIZE), encoders, strict=True):
        where = (kinds_T == kind).nonzero()[:, 0]
        if len(where):
            x_TD.index_copy_(0, where, encode_values(values_T2[where, : len(encoder.features)], encoder))
    if images_MD is not None:
        where = (kinds_T == TokenKind.IMAGE).nonzero()[:, 0]
        assert len(where) == len(images_MD), (len(where), images_MD.shape)
        x_TD.index_copy_(0, where, images_MD.to(x_TD.dtype))
    return x_TD


def encode_values(values: torch.Tensor, encoder: ValueEncoder) -> torch.Tensor:
    """(R, D) of values (R, n)."""
    return linear(fourier_features(values, encoder.features).to(encoder.weight.dtype), encoder.weight, encoder.bias)


def fourier_features(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(R, 2F) float32: [cos f, sin f], f = 2 pi values weight; values (R, n) in 0..1, weight (n, F) float32."""
    angle = (2 * math.pi) * (values.float() @ weight.float())
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
