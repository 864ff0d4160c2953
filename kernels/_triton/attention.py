"""Attention of prefilling sequences: one program a tile of queries and a head, keys in blocks through the page table.

An online softmax in powers of two. Keys that all queries of the tile see need no mask: only the last blocks of the
tile are compared with `visible`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits
from mdinfer.kernels._triton.launch import Config, Target, assert_dense, dot_type, launch, power_of_2, target_of
from mdinfer.kernels._triton.paged import read_rows, rows_of
from mdinfer.kernels.attention import AttentionBatch
from mdinfer.kernels.cache import LayerCache

LOG2_E = 1.4426950408889634

# By how the batch fills the chip. Small tiles: 775 queries of 32 heads are 416 programs, three for each processor
# of an H100, where tiles of 128 would be 224, which leaves a third of it idle in the second round. Neither measured.
CONFIGS = {
    "few": Config(blocks={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, stages=3),
    "many": Config(blocks={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=2),
    "float32": Config(blocks={"BLOCK_M": 32, "BLOCK_N": 32}, warps=4, stages=1),
    "wide": Config(blocks={"BLOCK_M": 32, "BLOCK_N": 32}, warps=4, stages=2),  # head dims over 128
}
_FILLED = 4  # programs a processor from which on larger tiles are taken


@triton.jit
def _attend_block(
    start,
    most,
    q,
    sees,
    highest,
    total,
    out,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    pages_ptr,
    head,
    scale,
    H: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys start .. start + BLOCK_N - 1 for a tile of queries; highest score, sum of weights and output so far."""
    keys = start + tl.arange(0, BLOCK_N)
    filled = keys < most if MASKED else keys >= 0
    row = rows_of(pages_ptr, start, filled, head, H, L, BLOCK_N)
    k = read_rows(k_ptr, row, filled, K, BLOCK_K, MASKED, FP8, NATIVE)
    v = read_rows(v_ptr, row, filled, K, BLOCK_K, MASKED, FP8, NATIVE)
    scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision=PRECISION)
    if FP8:
        scores *= tl.load(k_scale_ptr + row, mask=filled, other=0.0)[None, :] * scale
    else:
        scores *= scale
    if MASKED:
        scores = tl.where(keys[None, :] < sees[:, None], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    finite = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen no key yet
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(highest - finite)
    total = total * shrink + tl.sum(weights, axis=1)
    if FP8:
        weights *= tl.load(v_scale_ptr + row, mask=filled, other=0.0)[None, :]
    out = tl.dot(weights.to(DOT), v.to(DOT), out * shrink[:, None], input_precision=PRECISION)
    return higher, total, out


@triton.jit(do_not_specialize=["starts_ptr", "pages_ptr", "visible_ptr", "tiles_ptr", "pages_stride"])
def prefill_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    starts_ptr,
    pages_ptr,
    visible_ptr,
    tiles_ptr,
    out_ptr,
    pages_stride,
    scale,
    H: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    # The last tiles of a sequence see the most keys: they begin first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    head = tl.program_id(0)
    sequence, first = tl.load(tiles_ptr + 2 * tile), tl.load(tiles_ptr + 2 * tile + 1)
    end = tl.load(starts_ptr + sequence + 1)
    rows = first + tl.arange(0, BLOCK_M)
    inside = rows < end
    sees = tl.load(visible_ptr + rows, mask=inside, other=0)
    most = tl.max(sees, axis=0)
    least = tl.min(tl.where(inside, sees, most), axis=0)
    dims = tl.arange(0, BLOCK_K)
    at = (rows.to(tl.int64)[:, None] * H + head) * K + dims[None, :]
    there = inside[:, None] & (dims < K)[None, :]
    q = tl.load(q_ptr + at, mask=there, other=0.0).to(DOT)
    pages_ptr += sequence.to(tl.int64) * pages_stride

    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    plain = least // BLOCK_N * BLOCK_N
    for start in range(0, plain, BLOCK_N):
        highest, total, out = _attend_block(
            start, most, q, sees, highest, total, out, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, pages_ptr, head, scale,
            H, L, K, BLOCK_K, BLOCK_N, FP8, NATIVE, DOT, PRECISION, False,
        )  # fmt: skip
    for start in range(plain, most, BLOCK_N):
        highest, total, out = _attend_block(
            start, most, q, sees, highest, total, out, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, pages_ptr, head, scale,
            H, L, K, BLOCK_K, BLOCK_N, FP8, NATIVE, DOT, PRECISION, True,
        )  # fmt: skip
    out = out / tl.where(sees == 0, 1.0, total)[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=there)


def prefill_attention(q_THK: torch.Tensor, cache: LayerCache, batch: AttentionBatch, out_THK: torch.Tensor) -> None:
    """Fill the rows of `out_THK` that belong to sequences before those `batch.decoding`."""
    if batch.decoding == len(batch.queries):
        return
    assert_dense(q_THK, out_THK, batch.visible, batch.starts)
    assert batch.pages.stride(1) == 1, batch.pages.stride()
    H, L, K = cache.k.shape[1:]
    target = target_of(q_THK)
    config = _config(q_THK, sum(batch.queries) - batch.decoding, target)
    tiles = batch.tiles(config.blocks["BLOCK_M"])
    launch(
        prefill_attention_kernel,
        (H, len(tiles)),
        q_THK,
        bits(cache.k),
        bits(cache.v),
        cache.k_scale,
        cache.v_scale,
        batch.starts,
        batch.pages,
        batch.visible,
        tiles,
        out_THK,
        batch.pages.stride(0),
        LOG2_E * K**-0.5,
        H=H,
        L=L,
        K=K,
        BLOCK_K=max(16, power_of_2(K)),
        FP8=cache.k_scale is not None,
        NATIVE=target.native_fp8,
        DOT=dot_type(q_THK.dtype),
        PRECISION="ieee",
        config=config,
    )


def _config(q_THK: torch.Tensor, rows: int, target: Target) -> Config:
    if q_THK.dtype == torch.float32:
        return CONFIGS["float32"]
    if q_THK.shape[2] > 128:
        return CONFIGS["wide"]
    programs = rows * q_THK.shape[1] // CONFIGS["many"].blocks["BLOCK_M"]
    return CONFIGS["many"] if programs >= _FILLED * target.processors else CONFIGS["few"]
