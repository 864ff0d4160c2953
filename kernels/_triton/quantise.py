"""Rows to e4m3 with a scale each: one program a row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.float8 import LARGEST, bits, float_to_e4m3
from mdinfer.kernels._triton.launch import Config, launch, power_of_2, target_of

# Warps by the padded width: about 8 elements a thread, so that a row's loads are all in flight at once.
# Chosen by that count, not measured.
CONFIGS = {256: Config(warps=1), 1024: Config(warps=4), 2048: Config(warps=8), 8192: Config(warps=16)}

SMALLEST = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def quantise_rows_kernel(
    x_ptr, out_ptr, scale_ptr, K: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    x = tl.load(x_ptr + row.to(tl.int64) * K + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(x), axis=0), LARGEST)
    scale = tl.where(scale < SMALLEST, 1.0, scale)
    # The maximum passes over NaN; the scale must not.
    scale = tl.where(tl.max((x != x).to(tl.int32), axis=0) > 0, float("nan"), scale)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row.to(tl.int64) * K + columns, float_to_e4m3(tl.div_rn(x, scale), NATIVE), mask=inside)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    R, K = x.shape
    out = torch.empty(R, K, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(R, dtype=torch.float32, device=x.device)
    block = power_of_2(K)
    warps = next((config.warps for width, config in CONFIGS.items() if block <= width), CONFIGS[max(CONFIGS)].warps)
    config = Config(blocks={"BLOCK": block}, warps=warps)
    native = target_of(x).native_fp8
    launch(quantise_rows_kernel, (R,), x, bits(out), scale, K=K, LARGEST=LARGEST, NATIVE=native, config=config)
    return out, scale
