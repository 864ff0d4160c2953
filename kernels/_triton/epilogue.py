"""What follows a product without bias: one pass over it that adds the bias, then GELU or the residual."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, target_of

# 128 columns divide the widths 1152, 2048 and 8192 and leave 1% of 4304 empty; 2 loads of 16 bytes a thread are in
# flight, and 16 rows share a load of the bias. Few rows (decoding) are cut by columns alone, so that more processors
# take part. Not measured. The interpreter pays by program.
MANY = Config(blocks={"ROWS": 16, "COLUMNS": 128}, warps=4)
FEW = Config(blocks={"ROWS": 1, "COLUMNS": 512}, warps=2)
INTERPRETER = Config(blocks={"ROWS": 2048, "COLUMNS": 256})
_FEW_ROWS = 16


@triton.jit
def gelu_tanh(x):
    """x / 2 (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3): no difference of near numbers."""
    SLOPE: tl.constexpr = -2.0 * 0.7978845608028654 * 1.4426950408889634
    return x / (1.0 + tl.exp2(SLOPE * (x + 0.044715 * x * x * x)))


@triton.jit
def _places(T, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, columns, offsets and which of them exist, of this program's tile; tiles of a row are neighbours."""
    ACROSS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    rows = tl.program_id(0) // ACROSS * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    return rows, columns, at, (rows[:, None] < T) & (columns[None, :] < D)


@triton.jit(do_not_specialize=["T"])
def bias_gelu_kernel(
    x_ptr, bias_ptr, out_ptr, T, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr
):
    wait_for_earlier(PDL)
    _, columns, at, inside = _places(T, D, ROWS, COLUMNS)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + at, gelu_tanh(x).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "R"])
def bias_residual_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    T,
    R,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The residual's R rows are taken over and over."""
    wait_for_earlier(PDL)
    rows, columns, at, inside = _places(T, D, ROWS, COLUMNS)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    repeated = (rows % R)[:, None].to(tl.int64) * D + columns[None, :]
    x += tl.load(residual_ptr + repeated, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, overwrite: bool) -> torch.Tensor:
    assert_dense(bias)
    x = x.contiguous()
    out = x if overwrite else torch.empty_like(x)
    T, D, config, grid = _cut(x)
    launch(bias_gelu_kernel, grid, x, bias, out, T, D=D, config=config)
    return out


def bias_residual(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, overwrite: bool) -> torch.Tensor:
    assert_dense(bias)
    x, residual = x.contiguous(), residual.contiguous()
    out = x if overwrite else torch.empty_like(x)
    T, D, config, grid = _cut(x)
    launch(bias_residual_kernel, grid, x, bias, residual, out, T, residual.numel() // D, D=D, config=config)
    return out


def _cut(x: torch.Tensor) -> tuple[int, int, Config, tuple[int]]:
    D = x.shape[-1]
    T = x.numel() // D
    config = FEW if T < _FEW_ROWS else MANY if target_of(x).capability else INTERPRETER
    return T, D, config, (triton.cdiv(T, config.blocks["ROWS"]) * triton.cdiv(D, config.blocks["COLUMNS"]),)
