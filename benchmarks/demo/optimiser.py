"""Muon for the matrices, AdamW for all else (embeddings, heads, norms and biases).

The patch embedding is Muon's too: AdamW's steps of one size for each of its 588 inputs are far too large together,
and places were not learned.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz step in Muon (K. Jordan, 2024)


def orthogonalised(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U V^T of the matrices g (..., rows, columns) = U S V^T."""
    a, b, c = _COEFFICIENTS
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    out: torch.Tensor = (x.mT if tall else x).to(g.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is orthogonalised; `parts` of a parameter's rows are matrices of their own."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], lr: float, momentum: float = 0.95) -> None:
        groups = [{"params": [p], "parts": _parts(name, p)} for name, p in named]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch allows a closure, which Muon has no use for
        for group in self.param_groups:
            p = group["params"][0]
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            g = p.grad.lerp(state["momentum"], group["momentum"])
            rows, columns = p.shape[-2] // group["parts"], p.shape[-1]
            step = orthogonalised(g.reshape(-1, rows, columns)).reshape(p.shape)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(step, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def _parts(name: str, p: torch.Tensor) -> int:
    """q, k and v are three matrices in one, the first matrix of an expert two."""
    if ".qkv." in name:
        return 3
    return 2 if p.dim() == 3 and "fc1" in name else 1


def optimisers(
    model: torch.nn.Module, extra: torch.nn.Module, *, muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Both, over the model's parameters and the training-only heads'."""
    matrices, others = [], list(extra.parameters())
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        matrix = p.dim() >= 2 and ".blocks." in name and "tau" not in name and "router" not in name
        if matrix or (p.dim() == 2 and ("proj_mlp" in name or "patch_emb" in name)):
            matrices.append((name, p))
        else:
            others.append(p)
    return [
        Muon(matrices, muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.97), eps=1e-9, weight_decay=0.0, fused=True),
    ]
