"""Between the QKV product and attention, in two launches.

The first multiplies gelu(qkv) with Wq and Wv; the row of X inputs is cut into shares, since few programs that read
all of it would take longer than the memory. The second adds the shares up, which keeps their order fixed, and does
all the rest: temperatures, rotary positions, scaling, the write into pages.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import LARGEST, bits, float_to_e4m3
from mdinfer.kernels._triton.launch import Config, Target, assert_dense, dot_type, launch, power_of_2, target_of
from mdinfer.kernels.cache import LayerCache
from mdinfer.kernels.qkv import TokenPlaces
from mdinfer.kernels.quantise import SMALLEST

# Rows of a tile by the number of rows: 16 is the least that a matrix unit takes. Blocks of 64 inputs keep the
# weights of 64 outputs at 8 KiB a stage, and leave no register to spill. In the second launch four pairs of token and
# head a program: 256 numbers each of q, k and v, and eight programs a token of the real model. Not measured.
CONFIGS = {
    "few": Config(blocks={"BLOCK_M": 16, "BLOCK_X": 64}, warps=4, stages=4),
    "many": Config(blocks={"BLOCK_M": 64, "BLOCK_X": 64}, warps=4, stages=3),
    "float32": Config(blocks={"BLOCK_M": 16, "BLOCK_X": 32}, warps=4, stages=1),
    "write": Config(blocks={"ROWS": 4}, warps=4, stages=1),
}
_FEW_ROWS = 64
_PROGRAMS = 2  # a processor, that the row is cut for
_MOST_SHARES = 32


@triton.jit(do_not_specialize=["T"])
def tau_product_kernel(
    qkv_ptr,
    bias_ptr,
    weight_ptr,
    parts_ptr,
    T,
    per_share,
    X: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    share = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(share * per_share, tl.minimum(X, (share + 1) * per_share), BLOCK_X):
        inputs = start + tl.arange(0, BLOCK_X)
        inside = inputs < X
        at = rows.to(tl.int64)[:, None] * X + inputs[None, :]
        z = tl.load(qkv_ptr + at, mask=(rows < T)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if BIAS:
            z += tl.load(bias_ptr + inputs, mask=inside, other=0.0).to(tl.float32)[None, :]
        f = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
        there = (outputs < N)[:, None] & inside[None, :]
        weight = tl.load(weight_ptr + outputs[:, None] * X + inputs[None, :], mask=there, other=0.0)
        total = tl.dot(f.to(DOT), tl.trans(weight.to(DOT)), total, input_precision="ieee")
    at = (share.to(tl.int64) * T + rows)[:, None] * N + outputs[None, :]
    tl.store(parts_ptr + at, total, mask=(rows < T)[:, None] & (outputs < N)[None, :])


@triton.jit
def _tau(parts_ptr, shares, T, row, column, real, position, N: tl.constexpr):
    """tanh of the product's column for each head, plus the position's term."""
    product = tl.zeros(column.shape, tl.float32)
    for share in range(shares):
        product += tl.load(parts_ptr + (share * T + row) * N + column, mask=real, other=0.0)
    # tanh by the exponential of a number that is not positive, which cannot overflow; NaN stays.
    e = tl.exp(-2.0 * tl.abs(product))
    size = (1.0 - e) / (1.0 + e)
    return tl.where(product < 0, -size, size) + position


@triton.jit
def _numbers(qkv_ptr, bias_ptr, token, at, real, X: tl.constexpr, BIAS: tl.constexpr):
    """float32 of each pair's columns `at` in its token's row."""
    x = tl.load(qkv_ptr + (token * X)[:, None] + at, mask=real, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + at, mask=real, other=0.0).to(tl.float32)
    return x


@triton.jit
def _store_rows(
    cache_ptr,
    scale_ptr,
    slot,
    x,
    kept,
    written,
    dims,
    K: tl.constexpr,
    largest,
    smallest,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Rows x (pairs, K) to their slots."""
    at = slot[:, None] * K + dims[None, :]
    if FP8:
        scale = tl.div_rn(tl.max(tl.abs(x), axis=1), largest)
        scale = tl.where(scale < smallest, 1.0, scale)
        # The maximum passes over NaN; the scale must not.
        scale = tl.where(tl.max((x != x).to(tl.int32), axis=1) > 0, float("nan"), scale)
        tl.store(scale_ptr + slot, scale, mask=kept)
        quotient = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
        tl.store(cache_ptr + at, float_to_e4m3(quotient, NATIVE), mask=written)
    else:
        tl.store(cache_ptr + at, x.to(cache_ptr.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["log_ptr", "page_ptr", "slot_ptr", "T", "shares"])
def qkv_write_kernel(
    qkv_ptr,
    bias_ptr,
    parts_ptr,
    alpha_ptr,
    log_ptr,
    rope_ptr,
    page_ptr,
    slot_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    T,
    shares,
    largest,
    smallest,
    H: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_earlier(PDL)
    pair = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = (pair // H).to(tl.int64), pair % H
    dims = tl.arange(0, BLOCK_K)
    known = token < T
    real = known[:, None] & (dims < K)[None, :]
    QUARTER: tl.constexpr = K // 4
    turned = dims < 2 * QUARTER

    alpha = tl.load(alpha_ptr + head, mask=known, other=0.0).to(tl.float32)
    position = 0.5 + 1.0 / (1.0 + tl.exp(-alpha * tl.load(log_ptr + token, mask=known, other=0.0)))
    tau_q = _tau(parts_ptr, shares, T, token, head, known, position, 2 * H)
    tau_v = _tau(parts_ptr, shares, T, token, head + H, known, position, 2 * H)

    # y = x cos + partner sin, where the partner of i in the first quarter is -(i + K/4), in the second i - K/4.
    angle = rope_ptr + (token * 2 * QUARTER)[:, None] + (dims % QUARTER)[None, :]
    turning = known[:, None] & turned[None, :]
    cos = tl.load(angle, mask=turning, other=1.0)
    sin = tl.load(angle + QUARTER, mask=turning, other=0.0)
    sin = tl.where((dims < QUARTER)[None, :], -sin, sin)
    partner = tl.where(dims < QUARTER, dims + QUARTER, tl.where(turned, dims - QUARTER, dims))

    row = (head * K)[:, None]
    at, beside = row + dims[None, :], row + partner[None, :]
    q = _numbers(qkv_ptr, bias_ptr, token, at, real, 3 * H * K, BIAS)
    q_beside = _numbers(qkv_ptr, bias_ptr, token, beside, real, 3 * H * K, BIAS)
    q = (q * cos + q_beside * sin) * tau_q[:, None]
    tl.store(q_ptr + (token * H * K)[:, None] + at, q.to(q_ptr.dtype.element_ty), mask=real)

    page = tl.load(page_ptr + token, mask=known, other=-1).to(tl.int64)
    slot = (page * H + head) * L + tl.load(slot_ptr + token, mask=known, other=0)
    kept = page >= 0
    written = real & kept[:, None]
    k = _numbers(qkv_ptr, bias_ptr, token, H * K + at, real, 3 * H * K, BIAS)
    k_beside = _numbers(qkv_ptr, bias_ptr, token, H * K + beside, real, 3 * H * K, BIAS)
    k = k * cos + k_beside * sin
    _store_rows(k_ptr, k_scale_ptr, slot, k, kept, written, dims, K, largest, smallest, FP8, NATIVE)
    v = _numbers(qkv_ptr, bias_ptr, token, 2 * H * K + at, real, 3 * H * K, BIAS) * tau_v[:, None]
    _store_rows(v_ptr, v_scale_ptr, slot, v, kept, written, dims, K, largest, smallest, FP8, NATIVE)


def qkv_epilogue(
    qkv_TX: torch.Tensor,
    tau_wqwv: torch.Tensor,
    tau_alpha: torch.Tensor,
    places: TokenPlaces,
    cache: LayerCache,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    assert_dense(qkv_TX, bias, tau_wqwv, tau_alpha, places.log, places.rope, places.page, places.slot)
    T, X = qkv_TX.shape
    H, L, K = cache.k.shape[1:]
    target = target_of(qkv_TX)
    config = _config(qkv_TX)
    tiles = -(-T // config.blocks["BLOCK_M"])
    shares, per_share = _shares(X, tiles, config.blocks["BLOCK_X"], target)
    parts = torch.empty(shares, T, 2 * H, dtype=torch.float32, device=qkv_TX.device)
    q_THK = torch.empty(T, H, K, dtype=qkv_TX.dtype, device=qkv_TX.device)
    launch(
        tau_product_kernel,
        (tiles, shares),
        qkv_TX,
        bias,
        tau_wqwv,
        parts,
        T,
        per_share,
        X=X,
        N=2 * H,
        BLOCK_N=max(16, power_of_2(2 * H)),
        BIAS=bias is not None,
        DOT=dot_type(qkv_TX.dtype),
        config=config,
    )
    write = CONFIGS["write"]
    launch(
        qkv_write_kernel,
        (-(-T * H // write.blocks["ROWS"]),),
        qkv_TX,
        bias,
        parts,
        tau_alpha,
        places.log,
        places.rope,
        places.page,
        places.slot,
        q_THK,
        bits(cache.k),
        bits(cache.v),
        cache.k_scale,
        cache.v_scale,
        T,
        shares,
        LARGEST,
        SMALLEST,
        H=H,
        L=L,
        K=K,
        BLOCK_K=power_of_2(K),
        BIAS=bias is not None,
        FP8=cache.k_scale is not None,
        NATIVE=target.native_fp8,
        config=write,
    )
    return q_THK


def _config(qkv_TX: torch.Tensor) -> Config:
    if qkv_TX.dtype == torch.float32:
        return CONFIGS["float32"]
    return CONFIGS["few" if len(qkv_TX) <= _FEW_ROWS else "many"]


def _shares(X: int, tiles: int, block: int, target: Target) -> tuple[int, int]:
    """How many shares a row is cut into, and inputs of each."""
    blocks = -(-X // block)
    shares = 1
    while shares < _MOST_SHARES and 2 * shares <= blocks and 2 * shares * tiles <= _PROGRAMS * target.processors:
        shares *= 2
    return shares, -(-blocks // shares) * block
