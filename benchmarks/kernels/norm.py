"""LayerNorm and the three-way sum before it, at the widths of the decoder and the vision tower."""

from __future__ import annotations

import torch

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer import kernels
from mdinfer.kernels._triton import norm

_WHY = "bfloat16 results are rounded by at most 2^-8 of their size, 0.29 * 2^-7 on average; float32 within"
_BOUND = 4e-3


def cases() -> list[Case]:
    return [
        *(_layer_norm(rows, width) for rows, width in ((1, 2048), (64, 2048), (775, 2048), (6561, 1152))),
        *(_add_layer_norm(rows, 2048) for rows in (1, 64, 775, 6200)),
    ]


def _layer_norm(rows: int, width: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return tuple(randn(*shape, device=device) for shape in ((rows, width), (width,), (width,)))

    return Case(
        op="layer_norm",
        shape=f"{rows}x{width}-bf16",
        inputs=inputs,
        run=lambda x, weight, bias: norm.layer_norm(x, weight, bias, 1e-5),
        twin=lambda *tensors: kernels.norm.layer_norm_torch(*(t.float() for t in tensors)),
        bound=_BOUND,
        why=_WHY,
        rivals={"torch.layer_norm": lambda x, w, b: torch.nn.functional.layer_norm(x, w.shape, w, b)},
        bytes=2 * 2 * rows * width,
        bar=("bytes", 0.8) if rows > 512 else None,
    )


def _add_layer_norm(rows: int, width: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        shapes = ((rows, width), (rows, width), (rows, width), (width,), (width,))
        return tuple(randn(*shape, device=device) for shape in shapes)

    def eager(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x + a + b, w.shape, w, bias)

    return Case(
        op="add_layer_norm",
        shape=f"{rows}x{width}-bf16",
        inputs=inputs,
        run=lambda x, a, b, weight, bias: norm.add_layer_norm(x, a, b, weight, bias, 1e-5),
        twin=lambda *tensors: kernels.norm.add_layer_norm_torch(*(t.float() for t in tensors)),
        bound=_BOUND,
        why=_WHY,
        rivals={"eager": eager},
        bytes=5 * 2 * rows * width,
        bar=("bytes", 0.8) if rows > 512 else None,
    )
