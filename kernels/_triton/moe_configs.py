"""How the grouped products are cut, by rows an expert, dtype and chip. Nothing here is measured yet."""

from __future__ import annotations

from functools import cache

import torch

from mdinfer.kernels._triton.launch import Config, Target, power_of_2
from mdinfer.kernels.int4 import GROUP, INT4

# Rows of a tile by the rows an expert has on average. Below some 260 (bfloat16, H100) a product waits for weights,
# not for tensor cores: tiles that are not full cost nothing there, second tiles of an expert read its weights from the
# cache. Beyond, a tile of 128 is on average half empty once an expert: 20% of 256 rows.
BLOCK_M = {12: 16, 24: 32, 192: 64, 1 << 31: 128}

# Weight rows of a tile (BLOCK_N, for fc1 of each half) and warps, by BLOCK_M. With 128 rows the two halves of fc1 make
# a 256 x 128 tile, 128 accumulators a thread at 8 warps: the most that fits without spills. The second is for fc1 of
# fp8 weights: their conversion, and with fp8 rows Hopper's second sums (see IMPRECISE), take more registers.
CUTS = {16: (64, 64, 4), 32: (64, 64, 4), 64: (128, 128, 8), 128: (128, 64, 8)}
_FLOAT32 = (32, 32, 4)  # no tensor cores: small tiles, and rows of a tile no more than 32

# BLOCK_K: 128 bytes of a row of weights, a line of the cache; less where that leaves shared memory no room for three
# stages: one in use, two on their way.
_BYTES_K = 128
_STAGES = range(3, 5)
_RESERVE = 2048  # bytes that a kernel takes besides its stages: barriers
# Few rows wait for memory: so many programs are to find room on a processor, that one starts while another ends.
_PROGRAMS = {16: 3, 32: 3, 64: 1, 128: 1}

SUM = Config(blocks={"BLOCK": 1024}, warps=4)  # 16 bytes a thread and load, four loads at once


def block_rows(rows: int, E: int, dtype: torch.dtype) -> int:
    """BLOCK_M for `rows` (token, choice) pairs over E experts."""
    chosen = next(block for mean, block in BLOCK_M.items() if rows <= mean * E)
    return min(chosen, 32) if dtype == torch.float32 else chosen


@cache
def product_config(
    target: Target,
    block_m: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    fp8: bool,
    *,
    halves: int,
) -> Config:
    """For `halves` tiles of weights (N, K) and one of rows; `fp8`: both operands are fp8."""
    block_n, narrow, warps = _FLOAT32 if dtype == torch.float32 else CUTS[block_m]
    int4 = weight_dtype == INT4
    if weight_dtype.itemsize == 1 and halves == 2:
        # Conversions of e4m3 by integer operations take the registers, those of rows too.
        block_n = narrow if int4 or target.native_fp8 else 32 if fp8 else narrow // 2
    if fp8 and block_m == 16 and halves == 1 and not target.asynchronous_dot:
        block_n //= 2  # with 64 rows of e4m3, Triton 3.6 spills two registers on sm_120
    block_n = max(16, min(block_n, power_of_2(N)))
    size = 1 if fp8 else dtype.itemsize
    weight_size = 0.5 if int4 else weight_dtype.itemsize
    column = halves * block_n * weight_size + block_m * size  # bytes of one of K
    shared = (target.shared - _RESERVE) // (_PROGRAMS[block_m] if target.capability else 1)
    least = 32 if fp8 or int4 else 16
    block_k = max(least, min(_BYTES_K // weight_dtype.itemsize, power_of_2(K)))
    if int4:
        # A group, 64 bytes of a row; the rest of the line comes next. Half a group of both halves of fc1 where their
        # numbers and the rows' all stand in registers: a whole one takes 250 of them and more.
        block_k = GROUP // 2 if halves == 2 and not target.asynchronous_dot else GROUP
    while block_k > least and column * block_k * _STAGES[0] > shared:
        block_k //= 2
    stages = max(2, min(_STAGES[-1], int(shared // (column * block_k))))
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return Config(blocks=blocks, warps=warps, stages=stages)
