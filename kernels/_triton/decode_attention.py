"""Attention of one query a sequence: one program a sequence, head and share of its keys.

Every head has keys of its own, so that a query meets each key once: products are multiplied and summed in registers,
since a matrix unit would be left 15/16 empty. Keys are taken in chunks, each a softmax of its own, which are joined
in order, whether by one program that goes through all of them or by `combine_kernel` after several did. So a
sequence's result depends on nothing but the sequence: not on how many others decode beside it, nor on the width of
the page table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.attention import LOG2_E
from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits
from mdinfer.kernels._triton.launch import Config, Target, assert_dense, launch, power_of_2, target_of
from mdinfer.kernels._triton.paged import read_rows, rows_of
from mdinfer.kernels.attention import AttentionBatch
from mdinfer.kernels.cache import LayerCache

# BLOCK_N is the chunk. 128 keys are 16 KiB of keys and as much of values in bfloat16: with three programs a processor
# some 96 KiB are in flight there, several times what hides the memory's latency; what is kept of a chunk that another
# program joins is 1% of what it read. Not measured.
CONFIGS = {
    "pages": Config(blocks={"BLOCK_N": 128}, warps=4, stages=1),
    "wide": Config(blocks={"BLOCK_N": 32}, warps=4, stages=1),  # head dims over 128
    "combine": Config(warps=1, stages=1),
}
_PROGRAMS = 4  # a processor, up to which a sequence's chunks are shared out; not measured


@triton.jit
def _attend_chunk(
    start, count, q, head, pages_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
    H: tl.constexpr, L: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, FP8: tl.constexpr,
    NATIVE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Highest score, sum of weights and weighted values of keys start .. start + BLOCK_N - 1, of `count` in all."""
    filled = start + tl.arange(0, BLOCK_N) < count
    row = rows_of(pages_ptr, start, filled, head, H, L, BLOCK_N)
    k = read_rows(k_ptr, row, filled, K, BLOCK_K, True, FP8, NATIVE).to(tl.float32)
    v = read_rows(v_ptr, row, filled, K, BLOCK_K, True, FP8, NATIVE).to(tl.float32)
    scores = tl.sum(k * q[None, :], axis=1)
    if FP8:
        scores *= tl.load(k_scale_ptr + row, mask=filled, other=0.0)
    scores = tl.where(filled, scores, float("-inf"))
    peak = tl.max(scores, axis=0)
    weights = tl.exp2(scores - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(weights, axis=0)
    if FP8:
        weights *= tl.load(v_scale_ptr + row, mask=filled, other=0.0)
    return peak, total, tl.sum(weights[:, None] * v, axis=0)


@triton.jit
def _join(highest, total, out, peak, its_total, its_out):
    """Two parts of the keys as one. Which product is rounded is said, or compilers might choose differently."""
    higher = tl.maximum(highest, peak)
    finite = tl.where(higher == float("-inf"), 0.0, higher)
    shrink, its_shrink = tl.exp2(highest - finite), tl.exp2(peak - finite)
    total = tl.fma(total, shrink, its_total * its_shrink)
    return higher, total, tl.fma(out, shrink, its_out * its_shrink)


@triton.jit(do_not_specialize=["pages_ptr", "visible_ptr", "before", "first", "pages_stride", "chunks"])
def decode_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    pages_ptr,
    visible_ptr,
    out_ptr,
    before,
    first,
    pages_stride,
    chunks,
    scale,
    H: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """The batch's sequences from `before` on, whose rows are those from `first` on."""
    wait_for_earlier(PDL)
    head, sequence, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    count = tl.load(visible_ptr + first + sequence)
    pages_ptr += (before + sequence) * pages_stride
    dims = tl.arange(0, BLOCK_K)
    real = dims < K
    row = (first + sequence) * H + head
    q = tl.load(q_ptr + row * K + dims, mask=real, other=0.0).to(tl.float32) * scale

    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    out = tl.zeros((BLOCK_K,), tl.float32)
    for chunk in range(split, tl.cdiv(count, BLOCK_N), tl.num_programs(2)):
        peak, its_total, its_out = _attend_chunk(
            chunk * BLOCK_N, count, q, head, pages_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            H, L, K, BLOCK_K, FP8, NATIVE, BLOCK_N,
        )  # fmt: skip
        if SPLIT:  # float32 (B, H, chunks, K + 2): the chunk's values, its peak, its sum
            part = out_ptr + ((sequence * H + head) * chunks + chunk) * (K + 2)
            tl.store(part + dims, its_out, mask=real)
            tl.store(part + K, peak)
            tl.store(part + K + 1, its_total)
        else:
            highest, total, out = _join(highest, total, out, peak, its_total, its_out)
    if not SPLIT:
        out = out / tl.where(count == 0, 1.0, total)
        tl.store(out_ptr + row * K + dims, out.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["visible_ptr", "first", "chunks"])
def combine_kernel(
    parts_ptr,
    visible_ptr,
    out_ptr,
    first,
    chunks,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_K)
    real = dims < K
    count = tl.load(visible_ptr + first + row // H)
    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    out = tl.zeros((BLOCK_K,), tl.float32)
    for chunk in tl.range(0, tl.cdiv(count, BLOCK_N), loop_unroll_factor=4):
        part = parts_ptr + (row * chunks + chunk) * (K + 2)
        its_out = tl.load(part + dims, mask=real, other=0.0)
        highest, total, out = _join(highest, total, out, tl.load(part + K), tl.load(part + K + 1), its_out)
    out = out / tl.where(count == 0, 1.0, total)
    tl.store(out_ptr + (first * H + row) * K + dims, out.to(out_ptr.dtype.element_ty), mask=real)


def decode_attention(q_THK: torch.Tensor, cache: LayerCache, batch: AttentionBatch, out_THK: torch.Tensor) -> None:
    """Fill the last `batch.decoding` rows of `out_THK`; nothing depends on values that only the device knows."""
    B = batch.decoding
    if not B:
        return
    assert_dense(q_THK, out_THK, batch.visible)
    assert batch.pages.stride(1) == 1, batch.pages.stride()
    H, L, K = cache.k.shape[1:]
    target = target_of(q_THK)
    first, block_k = len(q_THK) - B, power_of_2(K)
    config = CONFIGS["wide" if block_k > 128 else "pages"]
    chunks = triton.cdiv(batch.pages.shape[1] * L, config.blocks["BLOCK_N"])
    splits = split_count(B * H, chunks, target)
    out = out_THK if splits == 1 else q_THK.new_empty((B, H, chunks, K + 2), dtype=torch.float32)
    launch(
        decode_attention_kernel,
        (H, B, splits),
        q_THK,
        bits(cache.k),
        bits(cache.v),
        cache.k_scale,
        cache.v_scale,
        batch.pages,
        batch.visible,
        out,
        len(batch.queries) - B,
        first,
        batch.pages.stride(0),
        chunks,
        LOG2_E * K**-0.5,
        H=H,
        L=L,
        K=K,
        BLOCK_K=block_k,
        FP8=cache.k_scale is not None,
        NATIVE=target.native_fp8,
        SPLIT=splits > 1,
        config=config,
    )
    if splits > 1:
        join = Config(blocks=config.blocks, warps=CONFIGS["combine"].warps, stages=CONFIGS["combine"].stages)
        args = (out, batch.visible, out_THK, first, chunks)
        launch(combine_kernel, (B * H,), *args, H=H, K=K, BLOCK_K=block_k, config=join)


def split_count(programs: int, chunks: int, target: Target) -> int:
    """Programs that share a sequence's chunks; from shapes alone, and of no consequence but for the time it takes.

    programs: sequences times heads; chunks: what the page table has room for.
    """
    return max(1, min(chunks, _PROGRAMS * target.processors // programs))
