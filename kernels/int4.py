"""int4 weights: two in a byte, a step and a least value for each group of 128 inputs of an output channel.

    w[n, k] = least[n, g] + step[n, g] * q[n, k],  g = k // 128,  q in 0..15

weight  (..., N, 64 G) uint8, G = ceil(K / 128): byte i of a group holds its input i in the lower four bits and its
        input 64 + i in the upper ones. So a run of bytes is two runs of inputs, each a tile of its own that meets its
        own run of activations: kernels take bits apart, and never move a number to another thread.
scale   (..., N, G, 2) bfloat16: step and least, four bytes that are read as one. bfloat16 has the range of whatever
        the weights are, and its rounding costs nothing, for q is chosen after it.

The last group of K inputs may be a part of one; what its bytes hold beyond K is met by no activation. 0.531 bytes a
weight where K is a multiple of 128.

A CPU multiplies them by a product of torch's own, which has a layout of its own, of as many bytes: `lay_out` changes
weights to it in place, where they are. It is the process's, never a file's.
"""

from __future__ import annotations

from functools import cache

import torch

INT4 = torch.uint8  # the type of a tensor that holds them
GROUP = 128
HALF = GROUP // 2
MOST = 15

# Private to torch: they may go, or come to mean something else, which would give wrong numbers without a word.
# Without vector instructions they are no faster than multiplying out.
_layout = getattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", None)
_product = getattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)
_VECTORS = ("AVX2", "AVX512")
_BLOCK = 64  # outputs that lie together in the widest of those layouts
_MIDDLE = 8  # what that product takes off q: its second number is the value of q = 8


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


def can_lay_out(N: int, K: int, dtype: torch.dtype) -> bool:
    """Whether `lay_out` and `linear_laid_out` are there for weights (N, K) and activations of `dtype` on this CPU."""
    there = _layout is not None and _product is not None and torch.backends.cpu.get_cpu_capability() in _VECTORS
    return there and dtype == torch.bfloat16 and N % _BLOCK == 0 and K % GROUP == 0 and _as_known()


@cache
def _as_known() -> bool:
    """Whether this torch's layout and product are those that `lay_out` is made for: tried once, on 5 and on 1 rows."""
    N, K = 2 * _BLOCK, 2 * GROUP
    numbers = torch.arange(N * K).view(N, 2, GROUP)
    weight = pack(numbers * 2654435761 // 4096 % 16)
    scale = ((torch.arange(4 * N).view(N, 2, 2) * 37 % 64 + 1) / torch.tensor((64, -8))).bfloat16()
    x = ((torch.arange(5 * K).view(5, K) * 29 % 67 - 33) / 32).bfloat16()
    expected = x.float() @ dequantise(weight, scale, K, torch.float32).T
    try:
        lay_out(weight, scale)
        found = [linear_laid_out(rows, weight, scale).float() for rows in (x, x[:1])]
    except (RuntimeError, TypeError):  # other arguments, other shapes, or no body for this CPU
        return False
    return all(bool((y - e).norm() < e.norm() / 128) for y, e in zip(found, (expected, expected[:1]), strict=True))


def lay_out(weight: torch.Tensor, scale: torch.Tensor) -> None:
    """Change a weight (N, 64 G) and its scale (N, G, 2) into what `linear_laid_out` takes, in the same memory.

    The scale becomes (G, N, 2) of step and middle = least + 8 step. The middle is rounded to bfloat16, which moves all
    weights of a group together, by 2^-9 of the middle at most: 1/64 of a step for any range that 0 lies in.
    """
    assert _layout is not None
    weight.copy_(_layout(unpack(weight).flatten(-2).int(), 1).view(weight.shape))
    step, least = scale.float().unbind(-1)
    numbers = torch.stack((step, least + _MIDDLE * step), dim=-1).transpose(0, 1)
    scale.view(numbers.shape).copy_(numbers)


def linear_laid_out(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(R, N) = x (R, K) times the transposed weight (N, K) after `lay_out`, both bfloat16; sums are float32.

    Of (2048, 2048) on one core (AVX-512), 1, 4, 16, 64, 128 rows take 0.23, 0.41, 1.6, 6.3, 12.4 ms; multiplied out
    first 4.2, 3.9, 4.0, 6.2, 8.6; bfloat16 weights 0.77, 0.71, 1.1, 3.0, 5.4.
    """
    assert _product is not None
    N, G, _ = scale.shape
    product: torch.Tensor = _product(x.contiguous(), weight, GROUP, scale.view(G, N, 2))
    return product


def dequantise(weight: torch.Tensor, scale: torch.Tensor, K: int, dtype: torch.dtype) -> torch.Tensor:
    """(..., N, K), computed in float32."""
    step, least = scale.float()[..., None].unbind(-2)
    return unpack(weight).float().mul_(step).add_(least).flatten(-2)[..., :K].to(dtype)
