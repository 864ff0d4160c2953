"""Crops of uint8 pixels to normalised patches: one thread for each few numbers that are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, launch, target_of

# 8 numbers a thread: one store of 16 bytes in bfloat16; their bytes are gathered out of the first-level cache.
# Not measured. The interpreter pays by program.
CONFIG = Config(blocks={"BLOCK": 1024}, warps=4)
INTERPRETER = Config(blocks={"BLOCK": 1 << 19})


@triton.jit
def crop_patches_kernel(
    crops_ptr, out_ptr,
    SIDE: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A block of one crop's output, its patches end to end."""
    wait_for_earlier(PDL)
    G: tl.constexpr = SIDE // PATCH
    AREA: tl.constexpr = PATCH * PATCH
    crop = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    patch, number = at // WIDTH, at % WIDTH
    channel, row, column = number // AREA, number % AREA // PATCH, number % PATCH
    y, x = patch // G * PATCH + row, patch % G * PATCH + column
    written = at < G * G * WIDTH
    taken = written & (number < CHANNELS * AREA)
    pixel = (y * SIDE + x) * CHANNELS + channel
    raw = tl.load(crops_ptr + crop * (SIDE * SIDE * CHANNELS) + pixel, mask=taken, other=0).to(tl.float32)
    value = tl.where(taken, (tl.div_rn(raw, 255.0) - 0.5) * 2.0, 0.0)
    tl.store(out_ptr + crop * (G * G * WIDTH) + at, value.to(out_ptr.dtype.element_ty), mask=written)


def crop_patches(crops: torch.Tensor, patch: int, dtype: torch.dtype, width: int) -> torch.Tensor:
    crops = crops.contiguous()
    N, side, _, channels = crops.shape
    positions = (side // patch) ** 2
    out = torch.empty(N, positions, width, dtype=dtype, device=crops.device)
    config = CONFIG if target_of(crops).capability else INTERPRETER
    grid = (N, triton.cdiv(positions * width, config.blocks["BLOCK"]))
    sizes = {"SIDE": side, "PATCH": patch, "CHANNELS": channels, "WIDTH": width}
    launch(crop_patches_kernel, grid, crops, out, **sizes, config=config)
    return out
