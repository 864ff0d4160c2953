"""LayerNorm, alone and behind the three-way sum of a decoder layer: whole rows in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits, e4m3_rows
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2, target_of
from mdinfer.kernels._triton.quantise import rounded_like

# By the padded width: about 8 elements a thread, so that a row's loads are all in flight at once; of narrow rows
# several share a program. Chosen by that count, not measured.
CONFIGS = {
    256: Config(blocks={"ROWS": 4}, warps=4),
    512: Config(blocks={"ROWS": 2}, warps=4),
    1024: Config(blocks={"ROWS": 1}, warps=4),
    2048: Config(blocks={"ROWS": 1}, warps=8),
    4096: Config(blocks={"ROWS": 1}, warps=16),
}


@triton.jit
def _places(count, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the program's elements lie, which of them are there, and their columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < count)[:, None] & (columns < D)
    return rows.to(tl.int64)[:, None] * D + columns, inside, columns


@triton.jit
def _normalise(x, columns, inside, weight_ptr, bias_ptr, eps, D: tl.constexpr):
    """Rows `x` in float32, zero outside; moments in two passes over registers."""
    mean = tl.sum(x, axis=1)[:, None] / D
    centred = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1)[:, None] / D + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    return centred * scale * weight + bias


@triton.jit(do_not_specialize=["count"])
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    count,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    at, inside, columns = _places(count, D, ROWS, BLOCK)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = _normalise(x, columns, inside, weight_ptr, bias_ptr, eps, D)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def layer_norm_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, scale_ptr, count, eps,
    D: tl.constexpr, NATIVE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    at, inside, columns = _places(count, D, ROWS, BLOCK)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rounded, scale = e4m3_rows(_normalise(x, columns, inside, weight_ptr, bias_ptr, eps, D), NATIVE)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(scale_ptr + rows, scale, mask=rows < count)
    tl.store(out_ptr + at, rounded, mask=inside)


@triton.jit(do_not_specialize=["count"])
def add_layer_norm_kernel(
    x_ptr,
    a_ptr,
    b_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    out_ptr,
    count,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    at, inside, columns = _places(count, D, ROWS, BLOCK)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    stored = x.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + at, stored, mask=inside)
    y = _normalise(stored.to(tl.float32), columns, inside, weight_ptr, bias_ptr, eps, D)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    assert_dense(weight, bias)
    x = x.contiguous()
    out, D = torch.empty_like(x), x.shape[-1]
    grid, config = _cut(x.numel() // D, D)
    launch(layer_norm_kernel, grid, x, weight, bias, out, x.numel() // D, eps, D=D, config=config)
    return out


def layer_norm_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows x (R, D): e4m3 and scales."""
    assert_dense(weight, bias)
    x = x.contiguous()
    out, scale = rounded_like(x)
    (count, D), native = x.shape, target_of(x).native_fp8
    grid, config = _cut(count, D)
    args = (x, weight, bias, bits(out), scale, count, eps)
    launch(layer_norm_rows_kernel, grid, *args, D=D, NATIVE=native, config=config)
    return out, scale


def add_layer_norm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    assert_dense(weight, bias)
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    total, out, D = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    grid, config = _cut(x.numel() // D, D)
    args = (x, a, b, weight, bias, total, out, x.numel() // D, eps)
    launch(add_layer_norm_kernel, grid, *args, D=D, config=config)
    return total, out


def _cut(count: int, D: int) -> tuple[tuple[int, ...], Config]:
    block = power_of_2(D)
    chosen = next((config for width, config in CONFIGS.items() if block <= width), CONFIGS[max(CONFIGS)])
    rows = chosen.blocks["ROWS"]
    return (-(-count // rows),), Config(blocks={"ROWS": rows, "BLOCK": block}, warps=chosen.warps)
