"""Rows in expert order: which (token, choice) each row is, and which rows a tile of the products takes.

Every program sums the counts of all blocks of tokens for itself (32 KiB at 8192 tokens): where an expert's rows
begin, and how many of them come from earlier blocks. The order is stable: an expert's rows are in token order.

Tiles hold rows of one expert. How many there are is known on the device alone; their table has room for the most that
rows can need: rows // block_m full ones and one broken one for each expert. Those left over say 0 rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2
from mdinfer.kernels._triton.moe_route import block_tokens

# Elements of the (blocks, E) or (tiles, E) looked at in one step: 1 a thread; 2 spill on sm_120. Not measured.
_ELEMENTS = 512
CONFIG = Config(warps=16)


@dataclass(frozen=True, slots=True)
class Order:
    """pair (rows,): token * A + choice of each row.  tiles (3, n): expert, first row, rows (0: nothing to do)."""

    pair: torch.Tensor
    tiles: torch.Tensor


@triton.jit
def _starts(counts):
    """Exclusive sums."""
    return tl.cumsum(counts, axis=0) - counts


@triton.jit
def _write_tiles(tiles_ptr, tiles, first, starts, counts, block_m, STEP: tl.constexpr):
    """The table's entries first .. first + STEP; an entry's expert is found by comparing with all experts."""
    tile = first + tl.arange(0, STEP)
    mine = tl.cdiv(counts, block_m)
    begin = _starts(mine)
    inside = (tile[:, None] >= begin[None, :]) & (tile[:, None] < (begin + mine)[None, :])
    done = (tile[:, None] - begin[None, :]) * block_m
    e = tl.arange(0, counts.shape[0])[None, :]
    expert = tl.sum(tl.where(inside, e, 0), axis=1)
    row = tl.sum(tl.where(inside, starts[None, :] + done, 0), axis=1)
    rows = tl.sum(tl.where(inside, tl.minimum(counts[None, :] - done, block_m), 0), axis=1)
    tl.store(tiles_ptr + tile, expert, mask=tile < tiles)
    tl.store(tiles_ptr + tiles + tile, row, mask=tile < tiles)
    tl.store(tiles_ptr + 2 * tiles + tile, rows, mask=tile < tiles)


@triton.jit(do_not_specialize=["T", "blocks", "tiles", "block_m"])
def moe_order_kernel(
    experts_ptr,
    counts_ptr,
    pair_ptr,
    tiles_ptr,
    T,
    blocks,
    tiles,
    block_m,
    E: tl.constexpr,
    A: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STEP: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    mine = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), dtype=tl.int32)
    before = tl.zeros((BLOCK_E,), dtype=tl.int32)
    for start in range(0, blocks, STEP):
        block = start + tl.arange(0, STEP)
        there = (block < blocks)[:, None] & (e < E)[None, :]
        counts = tl.load(counts_ptr + block[:, None] * E + e[None, :], mask=there, other=0)
        total += tl.sum(counts, axis=0)
        before += tl.sum(tl.where((block < mine)[:, None], counts, 0), axis=0)
    starts = _starts(total)

    t = mine * BLOCK_T + tl.arange(0, BLOCK_T)
    taken = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.int32)
    for i in range(A):
        expert = tl.load(experts_ptr + t * A + i, mask=t < T, other=-1)
        taken += (expert[:, None] == e[None, :]).to(tl.int32)
    row = tl.cumsum(taken, axis=0) - taken + (starts + before)[None, :]
    for i in range(A):
        expert = tl.load(experts_ptr + t * A + i, mask=t < T, other=-1)
        place = tl.sum(tl.where(expert[:, None] == e[None, :], row, 0), axis=1)
        tl.store(pair_ptr + place, t * A + i, mask=t < T)

    for first in range(mine * STEP, tiles, blocks * STEP):
        _write_tiles(tiles_ptr, tiles, first, starts, total, block_m, STEP)


def expert_order(experts: torch.Tensor, counts: torch.Tensor, block_m: int) -> Order:
    """Of experts (T, A) with the counts that `moe_route` made of them."""
    assert_dense(experts, counts)
    T, A = experts.shape
    blocks, E = counts.shape
    rows, block_e = T * A, power_of_2(E)
    pair = torch.empty(rows, dtype=torch.int32, device=experts.device)
    tiles = torch.empty(3, rows // block_m + min(E, rows), dtype=torch.int32, device=experts.device)
    sizes = {"BLOCK_E": block_e, "BLOCK_T": block_tokens(T), "STEP": max(1, _ELEMENTS // block_e)}
    args = (experts, counts, pair, tiles, T, blocks, tiles.shape[1], block_m)
    launch(moe_order_kernel, (blocks,), *args, E=E, A=A, **sizes, config=CONFIG)
    return Order(pair, tiles)
