"""Routing in one launch: bias, the A largest, softmax, and how many of a block's tokens each expert takes.

The counts are stored by block, not added up: no atomics, no workspace to be zeroed, no last program to wait for.
Where rows are put in expert order, `moe_order` reads all blocks' counts in any case, for it needs to know how many
rows of an expert lie in the blocks before; their sum, the offsets and the tile table fall out there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2
from mdinfer.kernels.moe import grouped

# Tokens of a program by the number of tokens: few programs' counts have to be summed again (128 at T = 8192), while
# small batches spread over the chip. 4 warps hold 64 x 64 keys at 32 a thread. Not measured.
CONFIGS = {
    8: Config(blocks={"BLOCK_T": 1}, warps=1),
    64: Config(blocks={"BLOCK_T": 4}, warps=2),
    1024: Config(blocks={"BLOCK_T": 16}, warps=4),
    1 << 31: Config(blocks={"BLOCK_T": 64}, warps=8),
}


@triton.jit
def _keys(logits, e):
    """int64 that sort like (logit, lower expert): order-preserving bits of the logit above, 2^31 - 1 - e below.

    Zeros become one zero, NaN of either sign the largest. No logit's key is as small as -2^63.
    """
    logits = tl.where(logits == 0.0, 0.0, logits)
    raw = logits.to(tl.int32, bitcast=True)
    raw = tl.where(logits != logits, 0x7FC00000, raw)
    ordered = raw ^ ((raw >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - e).to(tl.int64)


@triton.jit(do_not_specialize=["T"])
def moe_route_kernel(
    logits_ptr,
    bias_ptr,
    experts_ptr,
    weights_ptr,
    counts_ptr,
    T,
    stride,
    E: tl.constexpr,
    A: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    a = tl.arange(0, BLOCK_A)
    there = (t < T)[:, None] & (e < E)[None, :]
    logits = tl.load(logits_ptr + t[:, None].to(tl.int64) * stride + e[None, :], mask=there, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    keys = tl.where((e < E)[None, :], _keys(logits, e[None, :]), -(2**63))
    taken = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.int1)
    experts = tl.zeros((BLOCK_T, BLOCK_A), dtype=tl.int32)
    values = tl.full((BLOCK_T, BLOCK_A), float("-inf"), dtype=tl.float32)
    for i in range(A):
        best = tl.max(keys, axis=1)
        expert = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        ordered = (best >> 32).to(tl.int32)
        value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        here = (a == i)[None, :]
        experts = tl.where(here, expert[:, None], experts)
        values = tl.where(here, value[:, None], values)
        mine = keys == best[:, None]
        taken = taken | mine
        keys = tl.where(mine, -(2**63), keys)
    # The largest value is the first; a NaN there makes all of the row's weights NaN.
    largest = tl.sum(tl.where((a == 0)[None, :], values, 0.0), axis=1)
    odds = tl.where((a < A)[None, :], tl.exp(values - largest[:, None]), 0.0)
    weights = odds / tl.sum(odds, axis=1)[:, None]
    out = t[:, None] * A + a[None, :]
    stored = (t < T)[:, None] & (a < A)[None, :]
    tl.store(experts_ptr + out, experts, mask=stored)
    tl.store(weights_ptr + out, weights, mask=stored)
    if counts_ptr is not None:
        counts = tl.sum((taken & there).to(tl.int32), axis=0)
        tl.store(counts_ptr + tl.program_id(0) * E + e, counts, mask=e < E)


def block_tokens(T: int) -> int:
    """Tokens of one block of the counts."""
    return _config(T).blocks["BLOCK_T"]


def moe_route(
    logits: torch.Tensor, A: int, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """experts, weights, and counts where rows will be put in expert order."""
    assert_dense(bias)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    T, E = logits.shape
    config = _config(T)
    programs = triton.cdiv(T, config.blocks["BLOCK_T"])
    experts = torch.empty(T, A, dtype=torch.int32, device=logits.device)
    weights = torch.empty(T, A, dtype=torch.float32, device=logits.device)
    counts = torch.empty(programs, E, dtype=torch.int32, device=logits.device) if grouped(T, A, E) else None
    args = (logits, bias, experts, weights, counts, T, logits.stride(0))
    padded = {"BLOCK_E": power_of_2(E), "BLOCK_A": power_of_2(A)}
    launch(moe_route_kernel, (programs,), *args, E=E, A=A, **padded, config=config)
    return experts, weights, counts


def _config(T: int) -> Config:
    return next(config for most, config in CONFIGS.items() if most >= T)
