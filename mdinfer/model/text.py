"""The text decoder: parallel attention and MLP branches from one LayerNorm, dense layers first, then experts.

Per layer, h = ln(x):  x <- x + attn(h) + mlp(h).  The formulas of each operation stand in `mdinfer.kernels`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from mdinfer.config import TextConfig
from mdinfer.kernels import LayerCache, add_layer_norm, linear, paged_attention, qkv_epilogue, rope_table
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.layers import LayerNorm, Linear, Mlp, as_packed, empty
from mdinfer.model.moe import ExpertMlp


class Tau(nn.Module):
    """Attention temperatures: Wq over Wv, and the strength of the position term (kept in float32)."""

    def __init__(self, config: TextConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.wqwv = empty(2 * config.n_heads, 3 * config.dim, dtype=dtype, device=device)
        self.alpha = empty(config.n_heads, dtype=torch.float32, device=device)

    def lay_out(self) -> None:
        """Of `Moondream.lay_out`."""
        self.wqwv = as_packed(self.wqwv)


class Attention(nn.Module):
    def __init__(
        self, config: TextConfig, *, dtype: torch.dtype, linear_dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.qkv = Linear(config.dim, 3 * config.dim, dtype=dtype, device=device, kept=linear_dtype)
        self.tau = Tau(config, dtype=dtype, device=device)
        self.proj = Linear(config.dim, config.dim, dtype=dtype, device=device, kept=linear_dtype)

    def forward(self, h: torch.Tensor, batch: ForwardBatch, cache: LayerCache) -> torch.Tensor:
        q = qkv_epilogue(self.qkv(h), self.tau.wqwv, self.tau.alpha, batch.places, cache)
        out: torch.Tensor = self.proj(paged_attention(q, cache, batch.attention).flatten(1))
        return out


class Block(nn.Module):
    def __init__(
        self,
        config: TextConfig,
        *,
        moe: bool,
        dtype: torch.dtype,
        expert_dtype: torch.dtype,
        linear_dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ln = LayerNorm(config.dim, dtype=dtype, device=device)
        self.attn = Attention(config, dtype=dtype, linear_dtype=linear_dtype, device=device)
        self.mlp: nn.Module = (
            ExpertMlp(config.dim, config.moe, dtype=dtype, expert_dtype=expert_dtype, device=device)
            if moe
            else Mlp(config.dim, config.ff_dim, config.dim, dtype=dtype, device=device, kept=linear_dtype)
        )

    def forward(self, h: torch.Tensor, batch: ForwardBatch, cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Both branches of the normalised rows `h`; whoever holds x adds them to it."""
        if batch.side is None:
            return self.attn(h, batch, cache), self.mlp(h)
        mlp: torch.Tensor = batch.side.begin(lambda: self.mlp(h))
        try:
            attention = self.attn(h, batch, cache)
        finally:
            batch.side.join()
        return attention, mlp


class Head(Linear):
    """Its first rows stay at hand: they cannot be cut from a weight that is laid out."""

    _first: torch.Tensor | None = None

    def first(self, h: torch.Tensor, count: int) -> torch.Tensor:
        """Only the first `count` outputs, CONTROL_IDS at most."""
        weight = self.weight if self._first is None else self._first
        assert count <= len(weight), (count, weight.shape)
        return linear(h, weight[:count], self.bias[:count])

    def lay_out(self) -> None:
        first = self.weight[:CONTROL_IDS].clone()
        super().lay_out()
        if self.weight.is_mkldnn:
            self._first = first


class TextDecoder(nn.Module):
    """`max_context` positions of RoPE are tabled; a longer sequence is the caller's fault.

    `linear_dtype` is that of the weights of attention and dense layers. The head stays in `dtype`: every choice of a
    token goes through it undiluted, and in fp8 it would save 4% of a decoding step.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        max_context: int,
        dtype: torch.dtype,
        expert_dtype: torch.dtype,
        linear_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.wte = empty(config.vocab_size, config.dim, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(
            Block(
                config,
                moe=config.is_moe(i),
                dtype=dtype,
                expert_dtype=expert_dtype,
                linear_dtype=linear_dtype,
                device=device,
            )
            for i in range(config.n_layers)
        )
        self.post_ln = LayerNorm(config.dim, dtype=dtype, device=device)
        self.lm_head = Head(config.dim, config.vocab_size, dtype=dtype, device=device)
        self.rope = rope_table(max_context, config.head_dim, device)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """(B, D): hidden states of the rows `batch.last`, before the head's LayerNorm; fills the cache."""
        norms = [cast("LayerNorm", block.ln) for block in self.blocks]
        x, h = batch.x, norms[0](batch.x)
        for i, (block, layer) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            attention, mlp = block(h, batch, layer)
            if i < len(self.blocks) - 1:
                x, h = add_layer_norm(x, attention, mlp, norms[i + 1].weight, norms[i + 1].bias)
        x, attention, mlp = (rows.index_select(0, batch.last) for rows in (x, attention, mlp))
        return (x.float() + attention + mlp).to(x.dtype)

    def logits(self, hidden: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """(B, V), or only the `first` ids' (B, first)."""
        h = self.post_ln(hidden)
        rows: torch.Tensor = self.lm_head(h) if first is None else self.lm_head.first(h, first)
        return rows
