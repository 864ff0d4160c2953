"""Attention of one query a sequence: one program a sequence, head and share of its keys.

Every head has keys of its own, so that a query meets each key once: products are multiplied and summed in registers,
since a matrix unit would be left 15/16 empty. Each of a block's keys keeps an online softmax of its own, over the
keys that come by in its place; they meet once at the end, so that the loop needs no exchange between warps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.attention import LOG2_E
from mdinfer.kernels._triton.float8 import bits, e4m3_to_float
from mdinfer.kernels._triton.launch import Config, Target, launch, power_of_2, target_of
from mdinfer.kernels.attention import AttentionBatch
from mdinfer.kernels.cache import LayerCache

# A block of 64 keys is 8 KiB of keys and as much of values in bfloat16: with six programs a processor some 96 KiB
# are in flight there, several times what hides the memory's latency. Not measured.
CONFIGS = {
    "pages": Config(blocks={"BLOCK_N": 64}, warps=4, stages=1),
    "wide": Config(blocks={"BLOCK_N": 16}, warps=4, stages=1),  # head dims over 128
    "combine": Config(warps=1, stages=1),
}
# Programs a processor up to which a sequence's keys are split, and the most shares of one; not measured.
_PROGRAMS = 4
_MOST_SPLITS = 16


@triton.jit
def decode_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    pages_ptr,
    visible_ptr,
    out_ptr,
    pages_stride,
    scale,
    H: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(visible_ptr + sequence)
    blocks = tl.cdiv(count, BLOCK_N)
    share = tl.cdiv(blocks, SPLITS)
    begin = split * share * BLOCK_N
    end = tl.minimum(begin + share * BLOCK_N, count)
    dims = tl.arange(0, BLOCK_K)
    real = dims < K
    row = sequence.to(tl.int64) * H + head
    q = tl.load(q_ptr + row * K + dims, mask=real, other=0.0).to(tl.float32) * scale
    pages_ptr += sequence.to(tl.int64) * pages_stride

    highest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    out = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        filled = keys < end
        page = tl.load(pages_ptr + keys // L, mask=filled, other=0).to(tl.int64)
        slot = (page * H + head) * L + keys % L
        at = slot[:, None] * K + dims[None, :]
        there = filled[:, None] & real[None, :] if BLOCK_K != K else filled[:, None]
        k, v = tl.load(k_ptr + at, mask=there, other=0), tl.load(v_ptr + at, mask=there, other=0)
        if FP8:
            k, v = e4m3_to_float(k, NATIVE), e4m3_to_float(v, NATIVE)
        scores = tl.sum(k.to(tl.float32) * q[None, :], axis=1)
        if FP8:
            scores *= tl.load(k_scale_ptr + slot, mask=filled, other=0.0)
        scores = tl.where(filled, scores, float("-inf"))
        higher = tl.maximum(highest, scores)
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite)
        shrink = tl.exp2(highest - finite)
        total = total * shrink + weights
        if FP8:
            weights *= tl.load(v_scale_ptr + slot, mask=filled, other=0.0)
        out = out * shrink[:, None] + weights[:, None] * v.to(tl.float32)
        highest = higher

    peak = tl.max(highest, axis=0)
    finite = tl.where(peak == float("-inf"), 0.0, peak)
    shrink = tl.exp2(highest - finite)
    whole = tl.sum(total * shrink, axis=0)
    result = tl.sum(out * shrink[:, None], axis=0)
    if SPLITS == 1:
        result = result / tl.where(count == 0, 1.0, whole)
        tl.store(out_ptr + row * K + dims, result.to(out_ptr.dtype.element_ty), mask=real)
    else:  # float32 (B, H, SPLITS, K + 2): the share's unnormalised output, its peak, its sum
        part = out_ptr + (row * SPLITS + split) * (K + 2)
        tl.store(part + dims, result, mask=real)
        tl.store(part + K, peak)
        tl.store(part + K + 1, whole)


@triton.jit
def combine_kernel(
    parts_ptr,
    visible_ptr,
    out_ptr,
    H: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    real = (splits < SPLITS)[:, None] & (dims < K)[None, :]
    part = parts_ptr + (row * SPLITS + splits) * (K + 2)
    peak = tl.load(part + K, mask=splits < SPLITS, other=float("-inf"))
    highest = tl.max(peak, axis=0)
    shrink = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(tl.load(part + K + 1, mask=splits < SPLITS, other=0.0) * shrink, axis=0)
    values = tl.load(part[:, None] + dims[None, :], mask=real, other=0.0)
    count = tl.load(visible_ptr + row // H)
    result = tl.sum(values * shrink[:, None], axis=0) / tl.where(count == 0, 1.0, whole)
    tl.store(out_ptr + row * K + dims, result.to(out_ptr.dtype.element_ty), mask=dims < K)


def decode_attention(q_THK: torch.Tensor, cache: LayerCache, batch: AttentionBatch, out_THK: torch.Tensor) -> None:
    """Fill the last `batch.decoding` rows of `out_THK`; nothing depends on values that only the device knows."""
    B = batch.decoding
    if not B:
        return
    assert q_THK.is_contiguous() and out_THK.is_contiguous() and batch.pages.stride(1) == 1
    H, L, K = cache.k.shape[1:]
    target = target_of(q_THK)
    first = len(q_THK) - B
    pages = batch.pages[len(batch.queries) - B :]
    splits = split_count(B * H, pages.shape[1] * L, target)
    block_k = power_of_2(K)
    out = out_THK[first:] if splits == 1 else q_THK.new_empty((B, H, splits, K + 2), dtype=torch.float32)
    launch(
        decode_attention_kernel,
        (H, B, splits),
        q_THK[first:],
        bits(cache.k),
        bits(cache.v),
        cache.k_scale,
        cache.v_scale,
        pages,
        batch.visible[first:],
        out,
        pages.stride(0),
        LOG2_E * K**-0.5,
        H=H,
        L=L,
        K=K,
        BLOCK_K=block_k,
        FP8=cache.k_scale is not None,
        NATIVE=target.native_fp8,
        SPLITS=splits,
        config=CONFIGS["wide" if block_k > 128 else "pages"],
    )
    if splits > 1:
        constants = {"H": H, "K": K, "SPLITS": splits, "BLOCK_S": power_of_2(splits), "BLOCK_K": block_k}
        launch(
            combine_kernel,
            (B * H,),
            out,
            batch.visible[first:],
            out_THK[first:],
            config=CONFIGS["combine"],
            **constants,
        )


def split_count(programs: int, positions: int, target: Target) -> int:
    """Shares of a sequence's keys: a power of 2, so that few variants are compiled; from shapes alone.

    programs: sequences times heads; positions: what the page table has room for.
    """
    splits = 1
    while (
        splits < _MOST_SPLITS
        and 2 * splits * programs <= _PROGRAMS * target.processors
        and 2 * splits * CONFIGS["pages"].blocks["BLOCK_N"] <= positions
    ):
        splits *= 2
    return splits
