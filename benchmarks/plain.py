"""The decoder as one would first write it in torch: one request, one contiguous cache, no engine.

It shares the formulas with `mdinfer` and none of its code; benchmarks measure against it, tests hold the two equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.config import ModelConfig
from mdinfer.model.moe import ExpertWeight
from mdinfer.model.moondream import Moondream


def plain_weights(model: Moondream) -> dict[str, torch.Tensor]:
    """Canonical name -> tensor in rows, of an unquantised model; of those that are packed, a copy."""
    packed = {
        f"{name}.weight": torch.stack([weight.to_dense() for weight in module.packed])
        for name, module in model.named_modules()
        if isinstance(module, ExpertWeight) and module.packed
    }
    weights = {name: weight.to_dense() if weight.is_mkldnn else weight for name, weight in model.weights().items()}
    return {**weights, **packed}


class PlainDecoder:
    """weights: as `plain_weights` gives them."""

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], max_context: int) -> None:
        self.config, self.w, text = config, weights, config.text
        dtype = weights["text.wte"].dtype
        shape = (text.n_layers, text.n_heads, max_context, text.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        quarter = text.head_dim // 4
        frequency = 1_500_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        self.angle = (torch.arange(max_context, dtype=torch.float64)[:, None] * frequency).float()
        self.length = 0

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(V,) logits after the last of `tokens` (n,), which follow what was given before; text alone, causal."""
        w, n, start = self.w, len(tokens), self.length
        x = w["text.wte"][tokens]
        end = start + n
        mask = torch.ones(n, end, dtype=torch.bool).tril(start) if n > 1 else None
        for i in range(self.config.text.n_layers):
            at = f"text.blocks.{i}."
            h = F.layer_norm(x, x.shape[-1:], w[at + "ln.weight"], w[at + "ln.bias"])
            x = x + self._attention(h, i, start, end, mask) + self._mlp(h, i)
        self.length = end
        x = F.layer_norm(x[-1], x.shape[-1:], w["text.post_ln.weight"], w["text.post_ln.bias"])
        return F.linear(x, w["text.lm_head.weight"], w["text.lm_head.bias"])

    def _attention(self, h: torch.Tensor, i: int, start: int, end: int, mask: torch.Tensor | None) -> torch.Tensor:
        w, text, n = self.w, self.config.text, len(h)
        at = f"text.blocks.{i}.attn."
        qkv = F.linear(h, w[at + "qkv.weight"], w[at + "qkv.bias"])
        q, k, v = (part.view(n, text.n_heads, text.head_dim).transpose(0, 1) for part in qkv.chunk(3, -1))
        token = torch.tanh(F.linear(F.gelu(qkv), w[at + "tau.wqwv"])).float()
        logs = torch.arange(start + 1, end + 1).float().log()[:, None]
        position = 1 + torch.sigmoid(w[at + "tau.alpha"] * logs) - 0.5
        tau_q, tau_v = (token.chunk(2, -1)[j] + position for j in (0, 1))
        q = (q * tau_q.T[..., None]).to(h.dtype)
        v = (v * tau_v.T[..., None]).to(h.dtype)
        q, k = self._rope(q, start, end), self._rope(k, start, end)
        self.k[i, :, start:end], self.v[i, :, start:end] = k, v
        out = F.scaled_dot_product_attention(q[None], self.k[i, None, :, :end], self.v[i, None, :, :end], mask)
        return F.linear(out[0].transpose(0, 1).flatten(1), w[at + "proj.weight"], w[at + "proj.bias"])

    def _rope(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
        cos, sin = self.angle[start:end].cos(), self.angle[start:end].sin()
        half = 2 * cos.shape[-1]
        a, b = x[..., :half].float().chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        return torch.cat((turned.to(x.dtype), x[..., half:]), -1)

    def _mlp(self, h: torch.Tensor, i: int) -> torch.Tensor:
        w, at = self.w, f"text.blocks.{i}.mlp."
        if not self.config.text.is_moe(i):
            inner = F.gelu(F.linear(h, w[at + "fc1.weight"], w[at + "fc1.bias"]), approximate="tanh")
            return F.linear(inner, w[at + "fc2.weight"], w[at + "fc2.bias"])
        logits = F.linear(h, w[at + "router.weight"], w[at + "router.bias"])
        values, experts = logits.topk(self.config.text.moe.experts_per_token, dim=-1)
        gates = torch.softmax(values.float(), dim=-1).to(h.dtype)
        out = torch.zeros_like(h)
        for e in sorted(set(experts.flatten().tolist())):
            rows, place = (experts == e).nonzero(as_tuple=True)
            u, g = F.linear(h[rows], w[at + "fc1.weight"][e]).chunk(2, -1)
            y = F.linear(F.gelu(u) * (g + 1), w[at + "fc2.weight"][e])
            out.index_add_(0, rows, y * gates[rows, place, None])
        return out
