"""How attention finds and reads a sequence's keys and values through its page table."""

from __future__ import annotations

import triton
import triton.language as tl

from mdinfer.kernels._triton.float8 import e4m3_to_float


@triton.jit
def rows_of(pages_ptr, start, filled, head, H: tl.constexpr, L: tl.constexpr, BLOCK_N: tl.constexpr):
    """(BLOCK_N,) int64: where keys start .. start + BLOCK_N - 1 lie among the (page, head, slot) rows of the cache.

    start is a multiple of BLOCK_N; entries of the page table are read only where `filled`.
    """
    steps = tl.arange(0, BLOCK_N)
    if L % BLOCK_N == 0:  # one page holds them all
        page = tl.load(pages_ptr + start // L).to(tl.int64)
        return (page * H + head) * L + start % L + steps
    else:
        keys = start + steps
        page = tl.load(pages_ptr + keys // L, mask=filled, other=0).to(tl.int64)
        return (page * H + head) * L + keys % L


@triton.jit
def read_rows(
    ptr, at, filled, K: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr, FP8: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_K) of rows `at`, as stored or float32 of fp8 without its scales; zero beyond K, and, where
    MASKED, in rows that are not filled: those are not read.
    """
    dims = tl.arange(0, BLOCK_K)
    entries = ptr + (at[:, None] * K + dims[None, :])  # the sum is the same for keys and values
    if MASKED or BLOCK_K != K:
        x = tl.load(entries, mask=filled[:, None] & (dims < K)[None, :], other=0)
    else:
        x = tl.load(entries)
    if FP8:
        x = e4m3_to_float(x, NATIVE)
    return x
