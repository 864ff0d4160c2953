"""The input of one forward pass: a ragged batch of prefilling and decoding sequences, flattened to T rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mdinfer.config import TextConfig
from mdinfer.kernels import AttentionBatch, TokenPlaces


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """All tensors are on the model's device.

    x             (T, D) input rows, in the order of the sequences
    places        position of each row in its sequence, and where its key and value go in the cache
    attention     who attends to what
    last          (B,) int64, rows whose hidden state is wanted
    """

    x: torch.Tensor
    places: TokenPlaces
    attention: AttentionBatch
    last: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of all layers, each (layers, P, H, L, K)."""

    k: torch.Tensor
    v: torch.Tensor

    @staticmethod
    def bytes_per_page(layers: int, heads: int, head_dim: int, page_size: int, dtype: torch.dtype) -> int:
        return 2 * layers * heads * head_dim * page_size * dtype.itemsize

    @classmethod
    def allocate(
        cls, config: TextConfig, *, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Memory for `pages` pages, unset; a page's heads are apart, so that one head reads one run of it."""
        shape = (config.n_layers, pages, config.n_heads, page_size, config.head_dim)
        return cls(k=torch.empty(shape, dtype=dtype, device=device), v=torch.empty(shape, dtype=dtype, device=device))
