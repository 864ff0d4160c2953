"""The input of one forward pass: a ragged batch of prefilling and decoding sequences, flattened to T rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mdinfer.kernels import AttentionBatch


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """All tensors are on the model's device.

    x             (T, D) input rows, in the order of the sequences
    positions     (T,) int64, position of each row in its own sequence
    slots         (T,) int64, the cache slot each row's key and value go to: page * page_size + place
    attention     who attends to what
    last          (B,) int64, rows whose hidden state is wanted
    """

    x: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    attention: AttentionBatch
    last: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of all layers, each (layers, P, H, L, K); see `allocate` for the order in memory."""

    k: torch.Tensor
    v: torch.Tensor

    @staticmethod
    def bytes_per_page(layers: int, heads: int, head_dim: int, page_size: int, dtype: torch.dtype) -> int:
        return 2 * layers * heads * head_dim * page_size * dtype.itemsize

    @classmethod
    def allocate(
        cls,
        *,
        layers: int,
        pages: int,
        heads: int,
        head_dim: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """Memory for `pages` pages, unset.

        On a CPU slots come before heads in memory, so that consecutive pages are one run of rows that attention
        reads in place; on a GPU heads come first, so that a program that owns a head reads one run a page.
        """

        def one() -> torch.Tensor:
            if device.type == "cpu":
                rows = torch.empty(layers, pages, page_size, heads, head_dim, dtype=dtype, device=device)
                return rows.transpose(2, 3)
            return torch.empty(layers, pages, heads, page_size, head_dim, dtype=dtype, device=device)

        return cls(k=one(), v=one())
