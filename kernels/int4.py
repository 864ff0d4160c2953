"""int4 weights: two in a byte, a step and a least value for each group of 128 inputs of an output channel.

    w[n, k] = least[n, g] + step[n, g] * q[n, k],  g = k // 128,  q in 0..15

weight  (..., N, 64 G) uint8, G = ceil(K / 128): byte i of a group holds its input i in the lower four bits and its
        input 64 + i in the upper ones. So a run of bytes is two runs of inputs, each a tile of its own that meets its
        own run of activations: kernels take bits apart, and never move a number to another thread.
scale   (..., N, G, 2) bfloat16: step and least, four bytes that are read as one. bfloat16 has the range of whatever
        the weights are, and its rounding costs nothing, for q is chosen after it.

The last group of K inputs may be a part of one; what its bytes hold beyond K is met by no activation. 0.531 bytes a
weight where K is a multiple of 128.
"""

from __future__ import annotations

import torch

INT4 = torch.uint8  # the type of a tensor that holds them
GROUP = 128
HALF = GROUP // 2
MOST = 15


def group_count(K: int) -> int:
    return -(-K // GROUP)


def packed_shape(*shape: int) -> tuple[int, ...]:
    """Of weights (..., N, K)."""
    return (*shape[:-1], group_count(shape[-1]) * HALF)


def scale_shape(*shape: int) -> tuple[int, ...]:
    """Of weights (..., N, K)."""
    return (*shape[:-1], group_count(shape[-1]), 2)


def pack(q: torch.Tensor) -> torch.Tensor:
    """(..., G, 128) of whole numbers 0..15, in any type -> (..., 64 G)"""
    return (q[..., :HALF] + 16 * q[..., HALF:]).flatten(-2).to(INT4)


def unpack(weight: torch.Tensor) -> torch.Tensor:
    """(..., 64 G) -> (..., G, 128) uint8 of 0..15"""
    halves = weight.view(*weight.shape[:-1], -1, HALF)
    return torch.cat((halves & 15, halves >> 4), dim=-1)


def dequantise(weight: torch.Tensor, scale: torch.Tensor, K: int, dtype: torch.dtype) -> torch.Tensor:
    """(..., N, K), computed in float32."""
    step, least = scale.float()[..., None].unbind(-2)
    return unpack(weight).float().mul_(step).add_(least).flatten(-2)[..., :K].to(dtype)
