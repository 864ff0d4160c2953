"""Linear and LayerNorm with weights left unset, for a checkpoint to fill."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mdinfer.kernels import layer_norm, linear


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """y = x W^T + b; weight (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = empty(outputs, inputs, dtype=dtype, device=device)
        self.bias = empty(outputs, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, dim: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = empty(dim, dtype=dtype, device=device)
        self.bias = empty(dim, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU in its tanh form, Linear."""

    def __init__(self, dim: int, inner: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner, dtype=dtype, device=device)
        self.fc2 = Linear(inner, outputs, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out
