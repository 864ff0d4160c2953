"""Attention within a crop: no mask, keys and values in tiles, softmax online in base 2 and float32.

A head dim that is no power of two is taken in two parts, the largest power of two and the rest (72 as 64 + 8, the 8
padded to 16): a product then costs 80 columns instead of 128. A head starts at a multiple of 16 bytes where its dim is
a multiple of 8; all sizes being constants, the compiler sees that, and loads are wide in both parts.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, Target, dot_type, launch, power_of_2, target_of

# By capability, the largest entry that the chip has; 0 is the interpreter, which pays by program. Of 729 positions,
# 128 queries a program leave 5% of the tiles empty, as 64 would, and halve what is read of keys and values, which on
# an H100 still is 210 MB out of the second-level cache for 9 crops. Chosen by registers and shared memory as
# compiled, none measured:
#   8.0   8 warps hold 216 registers a thread, one program a processor; 4 warps spill; 3 stages take 60 KiB
#   8.6   the same in 40 KiB: 2 stages, since 100 KiB are all there is
#   9.0   a warp group for each 64 queries, 123 registers and 80 KiB: two programs a processor
#   10.0  the same; accumulators lie in tensor memory (with a rest of 8 instead of 16 columns they would not)
CONFIGS = {
    0: Config(blocks={"BLOCK_M": 1024, "BLOCK_N": 1024}),
    80: Config(blocks={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=3),
    86: Config(blocks={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=2),
    90: Config(blocks={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=3),
    120: Config(blocks={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=2),
}
# No shipped model has a head dim above 128 or is in float32 on a GPU: sizes for correctness, which do not spill at 256
# and, in float32, at 72.
WIDE = Config(blocks={"BLOCK_M": 32, "BLOCK_N": 16}, warps=8, stages=2)
FLOAT32 = Config(blocks={"BLOCK_M": 16, "BLOCK_N": 16}, warps=8, stages=1)
_LEAST = 16  # rows, columns and inner size of a tile that is multiplied


@triton.jit
def _load(
    ptr, rows, ROW: tl.constexpr, P: tl.constexpr, FIRST: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """(rows, SIZE): columns FIRST.. of a head, zero beyond its K; in a TAIL also beyond the crop's P rows."""
    columns = FIRST + tl.arange(0, SIZE)
    at = ptr + rows[:, None] * ROW + columns[None, :]
    if TAIL:
        return tl.load(at, mask=(rows[:, None] < P) & (columns[None, :] < K), other=0.0)
    elif FIRST + SIZE > K:
        return tl.load(at, mask=columns[None, :] < K, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _attend(
    q, q_rest, k_ptr, v_ptr, rows, best, total, acc, acc_rest, scale,
    ROW: tl.constexpr, P: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Take in one tile of keys: the row maxima (in base 2), the sums below the fraction, the weighted values."""
    k = _load(k_ptr, rows, ROW, P, 0, FIRST, K, TAIL).to(DOT)
    scores = tl.dot(q, k.T, input_precision=PRECISION)
    if REST:
        k_rest = _load(k_ptr, rows, ROW, P, FIRST, REST, K, TAIL).to(DOT)
        scores = tl.dot(q_rest, k_rest.T, scores, input_precision=PRECISION)
    if TAIL:
        scores = tl.where(rows[None, :] < P, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    shrunk = tl.exp2(best - higher)
    total = total * shrunk + tl.sum(weights, axis=1)
    weights = weights.to(DOT)
    v = _load(v_ptr, rows, ROW, P, 0, FIRST, K, TAIL).to(DOT)
    acc = tl.dot(weights, v, acc * shrunk[:, None], input_precision=PRECISION)
    if REST:
        v_rest = _load(v_ptr, rows, ROW, P, FIRST, REST, K, TAIL).to(DOT)
        acc_rest = tl.dot(weights, v_rest, acc_rest * shrunk[:, None], input_precision=PRECISION)
    return higher, total, acc, acc_rest


@triton.jit
def crop_attention_kernel(
    qkv_ptr, out_ptr, scale,
    P: tl.constexpr, H: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head of one crop, over all of its keys."""
    wait_for_earlier(PDL)
    C: tl.constexpr = H * K
    ROW: tl.constexpr = 3 * C
    TILES: tl.constexpr = (P + BLOCK_M - 1) // BLOCK_M
    FULL: tl.constexpr = P // BLOCK_N * BLOCK_N
    program = tl.program_id(0)
    head = program // TILES % H
    crop = (program // (TILES * H)).to(tl.int64)
    q_ptr = qkv_ptr + crop * (P * ROW) + head * K
    k_ptr, v_ptr = q_ptr + C, q_ptr + 2 * C
    queries = program % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load(q_ptr, queries, ROW, P, 0, FIRST, K, P % BLOCK_M != 0).to(DOT)
    q_rest = q
    if REST:
        q_rest = _load(q_ptr, queries, ROW, P, FIRST, REST, K, P % BLOCK_M != 0).to(DOT)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, FIRST), tl.float32)
    acc_rest = tl.zeros((BLOCK_M, REST if REST else 1), tl.float32)
    keys = tl.arange(0, BLOCK_N)
    for start in range(0, FULL, BLOCK_N):
        best, total, acc, acc_rest = _attend(
            q, q_rest, k_ptr, v_ptr, start + keys, best, total, acc, acc_rest, scale,
            ROW, P, K, FIRST, REST, DOT, PRECISION, False,
        )  # fmt: skip
    if FULL < P:
        best, total, acc, acc_rest = _attend(
            q, q_rest, k_ptr, v_ptr, FULL + keys, best, total, acc, acc_rest, scale,
            ROW, P, K, FIRST, REST, DOT, PRECISION, True,
        )  # fmt: skip
    out_ptr += crop * (P * C) + head * K
    _store(out_ptr, queries, acc / total[:, None], C, P, 0, FIRST, K)
    if REST:
        _store(out_ptr, queries, acc_rest / total[:, None], C, P, FIRST, REST, K)


@triton.jit
def _store(ptr, rows, x, ROW: tl.constexpr, P: tl.constexpr, FIRST: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr):
    columns = FIRST + tl.arange(0, SIZE)
    inside = (rows[:, None] < P) & (columns[None, :] < K)
    tl.store(ptr + rows[:, None] * ROW + columns[None, :], x.to(ptr.dtype.element_ty), mask=inside)


def crop_attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    qkv = qkv.contiguous()
    N, P, width = qkv.shape
    K = width // (3 * heads)
    out = qkv.new_empty(N, P, heads * K)
    first, rest = parts(K)
    config = config_of(target_of(qkv), qkv.dtype, P, K)
    grid = (triton.cdiv(P, config.blocks["BLOCK_M"]) * heads * N,)
    sizes = {"P": P, "H": heads, "K": K, "FIRST": first, "REST": rest}
    precision = {"DOT": dot_type(qkv.dtype), "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32"}
    scale = K**-0.5 * math.log2(math.e)
    launch(crop_attention_kernel, grid, qkv, out, scale, **sizes, **precision, config=config)
    return out


def parts(K: int) -> tuple[int, int]:
    """Columns of the two tiles that a head dim is taken in, powers of 2 of 16 or more; 0 where one does."""
    first = max(_LEAST, power_of_2(K + 1) // 2)
    return (first, max(_LEAST, power_of_2(K - first))) if first < K else (first, 0)


def config_of(target: Target, dtype: torch.dtype, P: int, K: int) -> Config:
    """How the kernel is cut on a chip, with tiles no larger than a crop needs."""
    if target.capability == 0:
        chosen = CONFIGS[0]
    elif dtype == torch.float32:
        chosen = FLOAT32
    else:
        chosen = WIDE if K > 128 else CONFIGS[max((c for c in CONFIGS if 0 < c <= target.capability), default=86)]
    most = max(_LEAST, power_of_2(P))
    return Config({name: min(size, most) for name, size in chosen.blocks.items()}, chosen.warps, chosen.stages)
