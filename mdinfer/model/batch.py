"""The input of one forward pass: a ragged batch of prefilling and decoding sequences, flattened to T rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from mdinfer.config import TextConfig
from mdinfer.kernels import AttentionBatch, LayerCache, TokenPlaces, copy_pages
from mdinfer.model.side_stream import SideStream

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """All tensors are on the model's device.

    x             (T, D) input rows, in the order of the sequences
    places        position of each row in its sequence, and where its key and value go in the cache
    attention     who attends to what
    last          (B,) int64, rows whose hidden state is wanted
    side          where a layer's MLP is computed beside its attention; None: after it
    """

    x: torch.Tensor
    places: TokenPlaces
    attention: AttentionBatch
    last: torch.Tensor
    side: SideStream | None = None


@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of all layers, each (layers, P, H, L, K); where they are fp8, scales (layers, P, H, L)."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    @staticmethod
    def bytes_per_page(layers: int, heads: int, head_dim: int, page_size: int, dtype: torch.dtype) -> int:
        row = head_dim * dtype.itemsize + (4 if dtype == FP8 else 0)
        return 2 * layers * heads * page_size * row

    @classmethod
    def allocate(
        cls, config: TextConfig, *, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Memory for `pages` pages, unset; a page's heads are apart, so that one head reads one run of it."""
        rows = (config.n_layers, pages, config.n_heads, page_size)
        k, v = (torch.empty(*rows, config.head_dim, dtype=dtype, device=device) for _ in "kv")
        if dtype != FP8:
            return cls(k=k, v=v)
        k_scale, v_scale = (torch.empty(rows, dtype=torch.float32, device=device) for _ in "kv")
        return cls(k=k, v=v, k_scale=k_scale, v_scale=v_scale)

    @cached_property
    def layers(self) -> tuple[LayerCache, ...]:
        """One for each layer, over the same memory."""
        scales: list[tuple[torch.Tensor | None, ...]] = [(None, None)] * len(self.k)
        if self.k_scale is not None and self.v_scale is not None:
            scales = list(zip(self.k_scale, self.v_scale, strict=True))
        return tuple(
            LayerCache(k=k, v=v, k_scale=k_scale, v_scale=v_scale)
            for k, v, (k_scale, v_scale) in zip(self.k, self.v, scales, strict=True)
        )

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy page source[i] over page into[i] in every layer, scales too; arguments as in `copy_pages`."""
        for stored in (self.k, self.v, self.k_scale, self.v_scale):
            if stored is not None:
                copy_pages(stored, source, into)

    @property
    def page_size(self) -> int:
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.k, self.v, self.k_scale, self.v_scale) if t is not None)
