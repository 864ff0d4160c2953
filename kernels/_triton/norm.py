"""LayerNorm, alone and behind the three-way sum of a decoder layer: one program a row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.launch import Config, launch, power_of_2

# Warps by the padded width: about 8 elements a thread, so that a row's loads are all in flight at once.
# Chosen by that count, not measured.
CONFIGS = {512: Config(warps=2), 1024: Config(warps=4), 2048: Config(warps=8), 4096: Config(warps=16)}


@triton.jit
def _normalise(x, columns, inside, weight_ptr, bias_ptr, eps, D: tl.constexpr):
    """The row `x` in float32, zero outside; moments in two passes over registers."""
    mean = tl.sum(x, axis=0) / D
    centred = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return centred * scale * weight + bias


@triton.jit
def layer_norm_kernel(x_ptr, weight_ptr, bias_ptr, out_ptr, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * D
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    y = _normalise(x, columns, inside, weight_ptr, bias_ptr, eps, D)
    tl.store(out_ptr + row + columns, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_layer_norm_kernel(
    x_ptr, a_ptr, b_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, eps, D: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * D
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(a_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(b_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    stored = x.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row + columns, stored, mask=inside)
    y = _normalise(stored.to(tl.float32), columns, inside, weight_ptr, bias_ptr, eps, D)
    tl.store(out_ptr + row + columns, y.to(out_ptr.dtype.element_ty), mask=inside)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.contiguous()
    out, D = torch.empty_like(x), x.shape[-1]
    launch(layer_norm_kernel, (x.numel() // D,), x, weight, bias, out, eps, D=D, config=_config(D))
    return out


def add_layer_norm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    total, out, D = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    args = (x, a, b, weight, bias, total, out, eps)
    launch(add_layer_norm_kernel, (x.numel() // D,), *args, D=D, config=_config(D))
    return total, out


def _config(D: int) -> Config:
    block = power_of_2(D)
    chosen = next((config for width, config in CONFIGS.items() if block <= width), CONFIGS[max(CONFIGS)])
    return Config(blocks={"BLOCK": block}, warps=chosen.warps)
