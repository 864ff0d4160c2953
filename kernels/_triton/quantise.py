"""Rows to e4m3 with a scale each, as they are or behind bias and GELU: one program a row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.epilogue import gelu_tanh
from mdinfer.kernels._triton.float8 import bits, e4m3_rows
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2, target_of

# Warps by the padded width: about 8 elements a thread, so that a row's loads are all in flight at once.
# Chosen by that count, not measured.
CONFIGS = {256: Config(warps=1), 1024: Config(warps=4), 2048: Config(warps=8), 8192: Config(warps=16)}


@triton.jit
def _row(x_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """The program's row as float32 (1, BLOCK), where its elements lie, and which of them exist."""
    columns = tl.arange(0, BLOCK)[None, :]
    at, inside = tl.program_id(0).to(tl.int64) * K + columns, columns < K
    return tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32), at, columns, inside


@triton.jit
def _write(x, at, inside, out_ptr, scale_ptr, NATIVE: tl.constexpr):
    rounded, scale = e4m3_rows(x, NATIVE)
    tl.store(scale_ptr + tl.program_id(0) + tl.arange(0, 1), scale)
    tl.store(out_ptr + at, rounded, mask=inside)


@triton.jit
def quantise_rows_kernel(
    x_ptr, out_ptr, scale_ptr, K: tl.constexpr, NATIVE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_earlier(PDL)
    x, at, _, inside = _row(x_ptr, K, BLOCK)
    _write(x, at, inside, out_ptr, scale_ptr, NATIVE)


@triton.jit
def bias_gelu_rows_kernel(
    x_ptr, bias_ptr, out_ptr, scale_ptr, K: tl.constexpr, NATIVE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_earlier(PDL)
    x, at, columns, inside = _row(x_ptr, K, BLOCK)
    x += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    _write(gelu_tanh(x), at, inside, out_ptr, scale_ptr, NATIVE)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    out, scale = rounded_like(x)
    config, native = _config(x.shape[1]), target_of(x).native_fp8
    launch(quantise_rows_kernel, (len(x),), x, bits(out), scale, K=x.shape[1], NATIVE=native, config=config)
    return out, scale


def bias_gelu_rows(x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert_dense(bias)
    x = x.contiguous()
    out, scale = rounded_like(x)
    config, native = _config(x.shape[1]), target_of(x).native_fp8
    launch(bias_gelu_rows_kernel, (len(x),), x, bias, bits(out), scale, K=x.shape[1], NATIVE=native, config=config)
    return out, scale


def rounded_like(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for what rows x (R, K) become."""
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device), scale


def _config(K: int) -> Config:
    block = power_of_2(K)
    warps = next((config.warps for width, config in CONFIGS.items() if block <= width), CONFIGS[max(CONFIGS)].warps)
    return Config(blocks={"BLOCK": block}, warps=warps)
