"""Experts for few tokens: no order, no tiles, two launches that read each chosen expert's weights as fast as they come.

A product with one row is bound by its weights' bytes, so it is multiplied and added up outside of the tensor cores.
A program asks for all its weights at once, then for the activations, multiplies, adds up and ends; that many of them
stand on each processor keeps the memory busy, not a pipeline within one. The barrier after the loads of weights has
nothing to wait for: it keeps the assembler from moving loads down to where their values are used, two at a time.
A thread takes LANES neighbours with each load and adds their products up, so that a sum costs one register per load.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton import moe_small_int4
from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2, target_of
from mdinfer.kernels._triton.moe_math import gate, read, to_float
from mdinfer.kernels.moe import ExpertWeights, Routing

# Bytes of weights of a program: 16 KiB are 8 loads of 16 bytes by each of 128 threads. Of these programs 6 to 8 fit on
# a processor of an H100 at up to 80 registers: 96 KiB in flight, where 18 KiB cover 3 TB/s at 800 ns of latency. At
# T = 1 and the model's size they are 4096 (fc1, bfloat16) and 2048 (fc2), 15 or more a processor. Not measured.
PROGRAM_BYTES = 16384
WARPS = 4
# At most so many columns of a row at once; longer rows are taken in steps.
BLOCK_K = 4096
# fc1: at most so many rows of each half; fc2: at most so many choices, of one row each.
BLOCK_N = 8
BLOCK_A = 8


@triton.jit
def small_fc1_kernel(
    x_ptr,
    experts_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    A,
    D: tl.constexpr,
    INNER: tl.constexpr,
    NATIVE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[pair] = gelu_erf(u) * (g + 1); pairs (token, choice) are the fast axis: equal experts meet in the cache."""
    wait_for_earlier(PDL)
    pair = tl.program_id(0)
    expert = tl.load(experts_ptr + pair).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    EVEN_K: tl.constexpr = D % BLOCK_K == 0
    EVEN: tl.constexpr = EVEN_K and INNER % BLOCK_N == 0
    x_ptr += (pair // A).to(tl.int64) * D
    weight_ptr += expert * (2 * INNER * D) + n[:, None, None] * D + k[None, :, :]
    u = tl.zeros((BLOCK_N, BLOCK_K // LANES), dtype=tl.float32)
    g = tl.zeros((BLOCK_N, BLOCK_K // LANES), dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        inside = (n < INNER)[:, None, None] & (start + k < D)[None, :, :]
        # Past the first cache, which is left to x: no other program of a processor wants these weights.
        weights_u = read(weight_ptr + start, inside, EVEN, ".cg")
        weights_g = read(weight_ptr + start + INNER * D, inside, EVEN, ".cg")
        tl.debug_barrier()
        x = read(x_ptr + start + k, start + k < D, EVEN_K, "").to(tl.float32)[None, :, :]
        u += tl.sum(to_float(weights_u, NATIVE) * x, axis=2)
        g += tl.sum(to_float(weights_g, NATIVE) * x, axis=2)
    u_N, g_N = tl.sum(u, axis=1), tl.sum(g, axis=1)
    if scale_ptr is not None:
        scale_ptr += expert * (2 * INNER) + n
        u_N *= tl.load(scale_ptr, mask=n < INNER, other=0.0)
        g_N *= tl.load(scale_ptr + INNER, mask=n < INNER, other=0.0)
    out = gate(u_N, g_N).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + pair.to(tl.int64) * INNER + n, out, mask=n < INNER)


@triton.jit
def small_fc2_kernel(
    h_ptr,
    experts_ptr,
    weights_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    D,
    A: tl.constexpr,
    INNER: tl.constexpr,
    NATIVE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[t, n] = sum over the token's choices of weight * fc2[expert, n] h[t, choice]; one n, all choices at once."""
    wait_for_earlier(PDL)
    t, n = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BLOCK_K // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    EVEN: tl.constexpr = INNER % BLOCK_K == 0 and A % BLOCK_A == 0
    total = tl.zeros((BLOCK_A,), dtype=tl.float32)
    for first in range(0, A, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        pair = t * A + a
        expert = tl.load(experts_ptr + pair, mask=a < A, other=0).to(tl.int64)
        y = tl.zeros((BLOCK_A, BLOCK_K // LANES), dtype=tl.float32)
        for start in range(0, INNER, BLOCK_K):
            inside = (a < A)[:, None, None] & (start + k < INNER)[None, :, :]
            rows = (expert * D + n) * INNER + start
            weights = read(weight_ptr + rows[:, None, None] + k[None, :, :], inside, EVEN, ".cg")
            tl.debug_barrier()
            rows = pair.to(tl.int64) * INNER + start
            h = read(h_ptr + rows[:, None, None] + k[None, :, :], inside, EVEN, "").to(tl.float32)
            y += tl.sum(to_float(weights, NATIVE) * h, axis=2)
        factor = tl.load(weights_ptr + pair, mask=a < A, other=0.0)
        if scale_ptr is not None:
            factor *= tl.load(scale_ptr + expert * D + n, mask=a < A, other=0.0)
        total += tl.sum(y, axis=1) * factor
    tl.store(out_ptr + t.to(tl.int64) * D + n, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty))


def moe_experts(x: torch.Tensor, routing: Routing, experts: ExpertWeights) -> torch.Tensor:
    if experts.int4:
        return moe_small_int4.moe_experts(x, routing, experts)
    assert_dense(experts.fc1, experts.fc2, experts.fc1_scale, experts.fc2_scale)
    x = x.contiguous()
    T, A = routing.experts.shape
    _, D, inner = experts.fc2.shape
    chosen, weights = routing.experts.contiguous(), routing.weights.contiguous()
    h = torch.empty(T * A, inner, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)
    fc1, fc2 = bits(experts.fc1), bits(experts.fc2)
    common = {"INNER": inner, "NATIVE": target_of(x).native_fp8, "LANES": 16 // x.element_size()}

    config = _config("BLOCK_N", BLOCK_N, D, 2 * fc1.element_size(), common["LANES"])
    grid = (T * A, triton.cdiv(inner, config.blocks["BLOCK_N"]))
    launch(small_fc1_kernel, grid, x, chosen, fc1, experts.fc1_scale, h, A, D=D, **common, config=config)

    config = _config("BLOCK_A", min(BLOCK_A, power_of_2(A)), inner, fc2.element_size(), common["LANES"])
    args = (h, chosen, weights, fc2, experts.fc2_scale, out, D)
    launch(small_fc2_kernel, (T, D), *args, A=A, **common, config=config)
    return out


def _config(name: str, most: int, K: int, size: int, lanes: int) -> Config:
    """Blocks of rows of K columns, of `size` bytes each: as many rows, up to `most`, as make the bytes of a program."""
    block_k = max(lanes, min(BLOCK_K, power_of_2(K)))
    rows = max(1, min(most, PROGRAM_BYTES // (block_k * size)))
    return Config(blocks={name: rows, "BLOCK_K": block_k}, warps=WARPS)
