"""The vision tower's own kernels at the published sizes, for 2 crops (a small picture) to 64 (a step's pictures)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer.kernels import vision
from mdinfer.kernels._triton import patches, pooling, vision_attention

SIDE, PATCH, PADDED, POSITIONS, WIDTH, HEADS, MARGIN = 378, 14, 592, 729, 1152, 16, 4
_BYTES = 2  # bfloat16
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def cases() -> list[Case]:
    return [
        *(_crop_attention(crops) for crops in (2, 9, 13, 64)),
        *(_crop_attention(2, dtype) for dtype in (torch.float16, torch.float32)),
        *(_crop_patches(crops) for crops in (2, 13, 64)),
        *(_joined_map(tiling) for tiling in ((1, 1), (2, 4), (3, 4), (1, 12))),
    ]


def _crop_attention(crops: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    exact = dtype == torch.float32

    def inputs(device: torch.device) -> Inputs:
        return (randn(crops, POSITIONS, 3 * WIDTH, device=device, dtype=dtype),)

    return Case(
        op="crop_attention",
        shape=f"{crops}x{POSITIONS}x{HEADS}x{WIDTH // HEADS}-{_NAMES[dtype]}",
        inputs=inputs,
        run=lambda qkv: vision_attention.crop_attention(qkv, HEADS),
        twin=lambda qkv: vision.crop_attention_torch(qkv.double(), HEADS),
        bound=1e-5 if exact else 4e-3,
        why="weights and results are each rounded to bfloat16, by 0.29 * 2^-8 of their size on average; float32 within",
        rivals={}
        if exact
        else {
            "sdpa flash": _sdpa(SDPBackend.FLASH_ATTENTION),
            "sdpa cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
            "sdpa efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION),
        },
        bytes=4 * dtype.itemsize * crops * POSITIONS * WIDTH,
        flops=4 * crops * POSITIONS**2 * WIDTH,
        bar=None if exact else ("sdpa", 1.0),
    )


def _sdpa(backend: SDPBackend) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(qkv: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return vision.crop_attention_torch(qkv, HEADS)

    return run


def _crop_patches(crops: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return (torch.randint(0, 256, (crops, SIDE, SIDE, 3), dtype=torch.uint8, device=device),)

    return Case(
        op="crop_patches",
        shape=f"{crops}x{SIDE}-bf16",
        inputs=inputs,
        run=lambda pixels: patches.crop_patches(pixels, PATCH, torch.bfloat16, PADDED),
        twin=lambda pixels: vision.crop_patches_torch(pixels, PATCH, torch.float32, PADDED),
        bound=4e-3,
        why="results are rounded to bfloat16, by 0.29 * 2^-8 of their size on average",
        rivals={"eager": lambda pixels: vision.crop_patches_torch(pixels, PATCH, torch.bfloat16, PADDED)},
        bytes=crops * (SIDE * SIDE * 3 + _BYTES * POSITIONS * PADDED),
        bar=("bytes", 0.8) if crops > 2 else None,
    )


def _joined_map(tiling: tuple[int, int]) -> Case:
    crops = 1 + tiling[0] * tiling[1]

    def inputs(device: torch.device) -> Inputs:
        return (randn(crops, POSITIONS, WIDTH, device=device), randn(POSITIONS, 2 * WIDTH, device=device))

    def run(features: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        pooling.joined_map(features, tiling, MARGIN, out)
        return out

    def eager(features: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        vision.joined_map_torch(features, tiling, MARGIN, out)
        return out

    return Case(
        op="joined_map",
        shape=f"{tiling[0]}x{tiling[1]}-bf16",
        inputs=inputs,
        run=run,
        twin=lambda features, out: eager(features.float(), out.float()),
        bound=4e-3,
        why="means are rounded to bfloat16, by 0.29 * 2^-8 of their size on average; the global half is copied",
        rivals={"eager": eager},
        bytes=_BYTES * POSITIONS * WIDTH * (crops + 2),
    )
