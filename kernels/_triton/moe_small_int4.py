"""Experts in int4 for few tokens: as `moe_small`, by bytes of weights, of which each meets two activations.

A sum of a group is taken over 1 + q / 16, and brought to the weights' values by two numbers a group and channel and
the sum of its activations. A program of fc2 takes several columns of the output: its activations are four times as
long as one column's weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2
from mdinfer.kernels._triton.moe_int4 import ONE, fraction, line, words
from mdinfer.kernels._triton.moe_math import gate, read
from mdinfer.kernels.int4 import GROUP, HALF, group_count
from mdinfer.kernels.moe import ExpertWeights, Routing

_HALF = tl.constexpr(HALF)
_GROUP = tl.constexpr(GROUP)

# As in `moe_small`: 8 loads of 16 bytes by each of 128 threads. At T = 1 and the model's size they are 1024 programs
# of fc1 and 512 of fc2, 8 and 4 a processor of an H100, all at once. Not measured.
PROGRAM_BYTES = 16384
WARPS = 4
LANES = 16  # bytes of a load
# At most so many bytes of a row at once; longer rows are taken in steps.
BLOCK_B = 2048
BLOCK_N = 8  # fc1: at most so many rows of each half
BLOCK_A = 8  # fc2: at most so many choices


@triton.jit
def _activations(ptr, at, inside, EVEN: tl.constexpr, WIDTH: tl.constexpr):
    """What the lower and the upper bits of bytes `at` of a row of WIDTH inputs meet, float32."""
    k = at + at // _HALF * _HALF
    low = read(ptr + k, inside & (k < WIDTH), EVEN, "").to(tl.float32)
    return low, read(ptr + k + _HALF, inside & (k + _HALF < WIDTH), EVEN, "").to(tl.float32)


@triton.jit
def _quarters(x, R: tl.constexpr, C: tl.constexpr, LANES: tl.constexpr):
    """(R, C, LANES) -> four (R, C, LANES / 4), of every fourth: what the four bytes of a word meet."""
    even, odd = tl.split(tl.reshape(x, (R, C, LANES // 4, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _sums(weights, scale, low, high, one, R: tl.constexpr, C: tl.constexpr, LANES: tl.constexpr):
    """(N, R, C) of words (N, R, C, LANES / 4) times activations (R, C, LANES) of their lower and upper bits."""
    total = tl.sum(low + high, axis=2)
    low, high = _quarters(low, R, C, LANES), _quarters(high, R, C, LANES)
    y = fraction(weights, 0, one) * low[0][None, :, :, :]
    y += fraction(weights, 4, one) * high[0][None, :, :, :]
    y += fraction(weights, 8, one) * low[1][None, :, :, :]
    y += fraction(weights, 12, one) * high[1][None, :, :, :]
    y += fraction(weights, 16, one) * low[2][None, :, :, :]
    y += fraction(weights, 20, one) * high[2][None, :, :, :]
    y += fraction(weights, 24, one) * low[3][None, :, :, :]
    y += fraction(weights, 28, one) * high[3][None, :, :, :]
    slope, offset = line(scale)
    return slope * tl.sum(y, axis=3) + offset * total[None, :, :]


@triton.jit
def small_int4_fc1_kernel(
    x_ptr,
    experts_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    one,
    A,
    D: tl.constexpr,
    INNER: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[pair] = gelu_erf(u) * (g + 1); pairs (token, choice) are the fast axis: equal experts meet in the cache."""
    wait_for_earlier(PDL)
    GROUPS: tl.constexpr = (D + _GROUP - 1) // _GROUP
    BYTES: tl.constexpr = GROUPS * _HALF
    EVEN_K: tl.constexpr = BYTES % BLOCK_B == 0
    EVEN: tl.constexpr = EVEN_K and INNER % BLOCK_N == 0
    RUNS: tl.constexpr = BLOCK_B // LANES
    pair = tl.program_id(0)
    expert = tl.load(experts_ptr + pair).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    run = tl.arange(0, RUNS)
    byte = (run[:, None] * LANES + tl.arange(0, LANES)[None, :])[None, :, :]
    word = (run[:, None] * (LANES // 4) + tl.arange(0, LANES // 4)[None, :])[None, None, :, :]
    x_ptr += (pair // A).to(tl.int64) * D
    weight_ptr += expert * (2 * INNER * BYTES // 4) + n[:, None, None, None] * (BYTES // 4)
    scale_ptr += expert * (2 * INNER * GROUPS) + n[:, None, None] * GROUPS
    u = tl.zeros((BLOCK_N, 1, RUNS), dtype=tl.float32)
    g = tl.zeros((BLOCK_N, 1, RUNS), dtype=tl.float32)
    for start in range(0, BYTES, BLOCK_B):
        at, group = start // 4 + word, ((start + run * LANES) // _HALF)[None, None, :]
        inside = (n < INNER)[:, None, None, None] & (at < BYTES // 4)
        weights_u = read(weight_ptr + at, inside, EVEN, ".cg")
        weights_g = read(weight_ptr + at + INNER * BYTES // 4, inside, EVEN, ".cg")
        inside = (n < INNER)[:, None, None] & (group < GROUPS)
        scale_u = read(scale_ptr + group, inside, EVEN, "")
        scale_g = read(scale_ptr + group + INNER * GROUPS, inside, EVEN, "")
        tl.debug_barrier()
        low, high = _activations(x_ptr, start + byte, start + byte < BYTES, EVEN_K and D == GROUPS * _GROUP, D)
        u += _sums(weights_u, scale_u, low, high, one, 1, RUNS, LANES)
        g += _sums(weights_g, scale_g, low, high, one, 1, RUNS, LANES)
    u_N, g_N = tl.sum(tl.sum(u, axis=2), axis=1), tl.sum(tl.sum(g, axis=2), axis=1)
    tl.store(out_ptr + pair.to(tl.int64) * INNER + n, gate(u_N, g_N).to(out_ptr.dtype.element_ty), mask=n < INNER)


@triton.jit
def small_int4_fc2_kernel(
    h_ptr,
    experts_ptr,
    weights_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    one,
    D: tl.constexpr,
    A: tl.constexpr,
    INNER: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[t, n] = sum over the token's choices of weight * fc2[expert, n] h[t, choice]; all choices at once."""
    wait_for_earlier(PDL)
    GROUPS: tl.constexpr = (INNER + _GROUP - 1) // _GROUP
    BYTES: tl.constexpr = GROUPS * _HALF
    EVEN_K: tl.constexpr = BYTES % BLOCK_B == 0 and A % BLOCK_A == 0
    EVEN: tl.constexpr = EVEN_K and D % BLOCK_N == 0
    RUNS: tl.constexpr = BLOCK_B // LANES
    t, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    run = tl.arange(0, RUNS)
    byte = (run[:, None] * LANES + tl.arange(0, LANES)[None, :])[None, :, :]
    word = (run[:, None] * (LANES // 4) + tl.arange(0, LANES // 4)[None, :])[None, None, :, :]
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(0, A, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        expert = tl.load(experts_ptr + t * A + a, mask=a < A, other=0).to(tl.int64)
        row = (expert[None, :] * D + n[:, None])[:, :, None]
        there = ((n < D)[:, None] & (a < A)[None, :])[:, :, None]
        y = tl.zeros((BLOCK_N, BLOCK_A, RUNS), dtype=tl.float32)
        for start in range(0, BYTES, BLOCK_B):
            at, group = start // 4 + word, ((start + run * LANES) // _HALF)[None, None, :]
            inside = there[:, :, :, None] & (at < BYTES // 4)
            weights = read(weight_ptr + row[:, :, :, None] * (BYTES // 4) + at, inside, EVEN, ".cg")
            scale = read(scale_ptr + row * GROUPS + group, there & (group < GROUPS), EVEN, "")
            tl.debug_barrier()
            inside = (a < A)[:, None, None] & (start + byte < BYTES)
            rows = h_ptr + ((t * A + a) * INNER)[:, None, None]
            low, high = _activations(rows, start + byte, inside, EVEN_K and INNER == GROUPS * _GROUP, INNER)
            y += _sums(weights, scale, low, high, one, BLOCK_A, RUNS, LANES)
        factor = tl.load(weights_ptr + t * A + a, mask=a < A, other=0.0)
        total += tl.sum(tl.sum(y, axis=2) * factor[None, :], axis=1)
    tl.store(out_ptr + t * D + n, total.to(out_ptr.dtype.element_ty), mask=n < D)


def moe_experts(x: torch.Tensor, routing: Routing, experts: ExpertWeights) -> torch.Tensor:
    assert experts.fc1_scale is not None and experts.fc2_scale is not None
    assert_dense(experts.fc1, experts.fc2, experts.fc1_scale, experts.fc2_scale)
    x = x.contiguous()
    T, A = routing.experts.shape
    D, inner = x.shape[1], experts.fc1.shape[1] // 2
    chosen, weights = routing.experts.contiguous(), routing.weights.contiguous()
    h = torch.empty(T * A, inner, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)

    block_b = min(BLOCK_B, power_of_2(group_count(D) * HALF))
    block_n = min(BLOCK_N, power_of_2(inner), PROGRAM_BYTES // (2 * block_b))
    config = Config(blocks={"BLOCK_N": block_n, "BLOCK_B": block_b}, warps=WARPS)
    args = (x, chosen, words(experts.fc1), words(experts.fc1_scale), h, ONE, A)
    grid = (T * A, triton.cdiv(inner, block_n))
    launch(small_int4_fc1_kernel, grid, *args, D=D, INNER=inner, LANES=LANES, config=config)

    block_b = min(BLOCK_B, power_of_2(group_count(inner) * HALF))
    block_a = min(BLOCK_A, power_of_2(A))
    block_n = max(1, min(BLOCK_N, PROGRAM_BYTES // (block_a * block_b)))
    config = Config(blocks={"BLOCK_N": block_n, "BLOCK_A": block_a, "BLOCK_B": block_b}, warps=WARPS)
    args2 = (h, chosen, weights, words(experts.fc2), words(experts.fc2_scale), out, ONE)
    grid = (T, triton.cdiv(D, block_n))
    launch(small_int4_fc2_kernel, grid, *args2, D=D, A=A, INNER=inner, LANES=LANES, config=config)
    return out
