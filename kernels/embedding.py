"""The decoder's input rows: a token's embedding, or in its place an image position, a coordinate or a size."""

from __future__ import annotations

from enum import IntEnum

import torch


class TokenKind(IntEnum):
    """Where a position's input row comes from."""

    TEXT = 0
    COORD = 1
    SIZE = 2
    IMAGE = 3


def input_embeddings(
    wte_VD: torch.Tensor,
    tokens_T: torch.Tensor,
    replaced_R: torch.Tensor | None = None,
    rows_RD: torch.Tensor | None = None,
) -> torch.Tensor:
    """(T, D): rows of the table by token; positions `replaced_R` (int64, distinct) take `rows_RD` instead."""
    x_TD = wte_VD.index_select(0, tokens_T)
    if replaced_R is not None and rows_RD is not None:
        x_TD.index_copy_(0, replaced_R, rows_RD.to(x_TD.dtype))
    return x_TD
