"""Linear and LayerNorm with weights left unset, for a checkpoint to fill."""

from __future__ import annotations

import torch
from torch import nn

from mdinfer.kernels import layer_norm, linear, linear_gelu, linear_residual


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

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The residual is added where there is one."""
        inner = linear_gelu(x, self.fc1.weight, self.fc1.bias)
        if residual is not None:
            return linear_residual(inner, self.fc2.weight, self.fc2.bias, residual)
        out: torch.Tensor = self.fc2(inner)
        return out
