"""Linear and LayerNorm with weights left unset, for a checkpoint to fill."""

from __future__ import annotations

import torch
from torch import nn

from mdinfer.kernels import (
    Float8Rows,
    fits_fp8,
    layer_norm,
    layer_norm_rows,
    linear,
    linear_fp8,
    linear_gelu,
    linear_gelu_rows,
    linear_residual,
)
from mdinfer.kernels.packed import can_pack, pack


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def as_packed(weight: nn.Parameter) -> nn.Parameter:
    """In a layout of a CPU's own, which `kernels.linear` knows, where there is one, and the memory it had is free; else
    as it was.
    """
    assert not weight.is_mkldnn, "a weight is laid out once"
    if not can_pack(weight.device, weight.dtype):
        return weight
    kept = nn.Parameter(pack(weight), requires_grad=False)
    free(weight)
    return kept


def free(weight: torch.Tensor) -> None:
    """Give its memory back, whoever still refers to it."""
    weight.untyped_storage().resize_(0)


class Linear(nn.Module):
    """y = x W^T + b; weight (outputs, inputs), in `dtype` unless `kept` says otherwise.

    Kept in float8_e4m3fn it has a float32 scale (outputs,), None else; a shape that fp8 products do not take stays in
    `dtype`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        kept: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        fp8 = kept == torch.float8_e4m3fn and fits_fp8(outputs, inputs)
        self.weight = empty(outputs, inputs, dtype=torch.float8_e4m3fn if fp8 else dtype, device=device)
        self.scale = empty(outputs, dtype=torch.float32, device=device) if fp8 else None
        self.bias = empty(outputs, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor | Float8Rows) -> torch.Tensor:
        if self.scale is not None:
            return linear_fp8(x, self.weight, self.scale, self.bias)
        assert isinstance(x, torch.Tensor)
        return linear(x, self.weight, self.bias)

    def lay_out(self) -> None:
        """Of `Moondream.lay_out`."""
        self.weight = as_packed(self.weight)

    def gelu(self, x: torch.Tensor | Float8Rows, then: Linear) -> torch.Tensor | Float8Rows:
        """GELU of it, in its tanh form, as `then` takes it."""
        if self.scale is not None and then.scale is not None:
            return linear_gelu_rows(x, self.weight, self.bias, self.scale)
        assert isinstance(x, torch.Tensor)
        return linear_gelu(x, self.weight, self.bias, self.scale)

    def residual(self, x: torch.Tensor | Float8Rows, residual: torch.Tensor) -> torch.Tensor:
        """Its sum with the residual, whose rows may repeat."""
        return linear_residual(x, self.weight, self.bias, residual, self.scale)


class LayerNorm(nn.Module):
    def __init__(self, dim: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = empty(dim, dtype=dtype, device=device)
        self.bias = empty(dim, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias)

    def rows(self, x: torch.Tensor, then: Linear) -> torch.Tensor | Float8Rows:
        """As `then` takes it."""
        return self(x) if then.scale is None else layer_norm_rows(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU in its tanh form, Linear."""

    def __init__(
        self,
        dim: int,
        inner: int,
        outputs: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        kept: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner, dtype=dtype, device=device, kept=kept)
        self.fc2 = Linear(inner, outputs, dtype=dtype, device=device, kept=kept)

    def forward(self, x: torch.Tensor | Float8Rows, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The residual is added where there is one."""
        inner = self.fc1.gelu(x, self.fc2)
        if residual is not None:
            return self.fc2.residual(inner, residual)
        out: torch.Tensor = self.fc2(inner)
        return out
