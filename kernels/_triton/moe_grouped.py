"""Experts for many tokens: rows in expert order, two grouped matrix products, a sum over each token's rows.

Products are taken as weights (N, K) times rows (K, M), not the other way round. Tensor cores want 64 rows or more of
their first operand, which weights always have, while an expert may have but a few tokens: those are the second, where
16 are enough. And e4m3 weights that meet 16-bit rows are converted in registers, from where only the first operand
can be taken.

Programs that share rows of x are neighbours: all column tiles of one tile of rows, then the next tile of rows, which
most often takes the same expert. What runs at one time on a chip are one to two experts' weights and some rows of x:
12 to 25 MB in bfloat16, within the cache of large chips.

The rows of a token are stored, then added up in the order of its choices. Adding them up on the way out, by atomics,
would spare that pass, but the order would be chance and with it the last bits of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits
from mdinfer.kernels._triton.launch import Config, Target, assert_dense, dot_type, launch, target_of
from mdinfer.kernels._triton.moe_configs import SUM, block_rows, product_config
from mdinfer.kernels._triton.moe_int4 import ONE, int4_product, words
from mdinfer.kernels._triton.moe_math import gate, to_float
from mdinfer.kernels._triton.moe_order import expert_order
from mdinfer.kernels._triton.quantise import quantise_rows
from mdinfer.kernels.moe import Activations, ExpertWeights, Routing


@triton.jit
def _operand(ptr, inside, EVEN: tl.constexpr, NATIVE: tl.constexpr, DOT: tl.constexpr):
    """A tile brought to DOT: as it is, converted, or, for products of two fp8 operands, the bits taken for e4m3."""
    if EVEN:
        x = tl.load(ptr)
    else:
        x = tl.load(ptr, mask=inside, other=0)
    if x.dtype == tl.uint8 and DOT == tl.float8e4nv:
        return x.to(tl.float8e4nv, bitcast=True)
    elif x.dtype == DOT:
        return x
    else:
        return to_float(x, NATIVE).to(DOT)


@triton.jit
def _product(
    weight_ptr, expert, x_ptr, row, n, N: tl.constexpr, K: tl.constexpr, HALVES: tl.constexpr, NATIVE: tl.constexpr,
    DOT: tl.constexpr, IMPRECISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_M) of rows n of an expert's weights times rows of x, both K long; and, with two HALVES of N rows
    each, the same of the second half.
    """
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    EVEN: tl.constexpr = EVEN_K and N % BLOCK_N == 0
    k = tl.arange(0, BLOCK_K)
    x_ptr += row[None, :].to(tl.int64) * K + k[:, None]
    weight_ptr += expert * (HALVES * N * K) + n[:, None] * K + k[None, :]
    u = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    g = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = (n < N)[:, None] & (start + k < K)[None, :]
        x = _operand(x_ptr + start, (start + k < K)[:, None], EVEN_K, NATIVE, DOT)
        weights = _operand(weight_ptr + start, inside, EVEN, NATIVE, DOT)
        u = tl.dot(weights, x, u, input_precision="ieee", max_num_imprecise_acc=IMPRECISE)
        if HALVES == 2:
            weights = _operand(weight_ptr + start + N * K, inside, EVEN, NATIVE, DOT)
            g = tl.dot(weights, x, g, input_precision="ieee", max_num_imprecise_acc=IMPRECISE)
    return u, g


@triton.jit(do_not_specialize=["tiles"])
def grouped_fc1_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, pair_ptr, tiles_ptr, out_ptr, one, tiles, A,
    D: tl.constexpr, INNER: tl.constexpr, INT4: tl.constexpr, NATIVE: tl.constexpr, DOT: tl.constexpr,
    IMPRECISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[row] = gelu_erf(u) * (g + 1), rows in expert order; u and g are tiles of the same program."""
    wait_for_earlier(PDL)
    columns: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // columns
    rows = tl.load(tiles_ptr + 2 * tiles + tile)
    if rows == 0:
        return  # before anything else is loaded: later, some of these products spill
    expert, first = tl.load(tiles_ptr + tile).to(tl.int64), tl.load(tiles_ptr + tiles + tile)
    n, m = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    token = tl.load(pair_ptr + first + m, mask=m < rows, other=0) // A  # beyond the tile: any row, not stored
    if INT4:
        u, g = int4_product(
            weight_ptr, scale_ptr, expert, x_ptr, token, n, one, INNER, D, 2, DOT, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
    else:
        u, g = _product(
            weight_ptr, expert, x_ptr, token, n, INNER, D, 2, NATIVE, DOT, IMPRECISE, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
    if scale_ptr is not None and not INT4:
        scale_ptr += expert * (2 * INNER) + n
        u *= tl.load(scale_ptr, mask=n < INNER, other=0.0)[:, None]
        g *= tl.load(scale_ptr + INNER, mask=n < INNER, other=0.0)[:, None]
    if x_scale_ptr is not None:
        x_scale = tl.load(x_scale_ptr + token)
        u *= x_scale[None, :]
        g *= x_scale[None, :]
    out_ptr += (first + m)[None, :].to(tl.int64) * INNER + n[:, None]
    tl.store(out_ptr, gate(u, g).to(out_ptr.dtype.element_ty), mask=(n < INNER)[:, None] & (m < rows)[None, :])


@triton.jit(do_not_specialize=["tiles"])
def grouped_fc2_kernel(
    h_ptr, h_scale_ptr, weight_ptr, scale_ptr, weights_ptr, pair_ptr, tiles_ptr, out_ptr, one, tiles,
    D: tl.constexpr, INNER: tl.constexpr, INT4: tl.constexpr, NATIVE: tl.constexpr, DOT: tl.constexpr,
    IMPRECISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[pair of row] = weight of the pair * fc2[expert] h[row]."""
    wait_for_earlier(PDL)
    columns: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // columns
    rows = tl.load(tiles_ptr + 2 * tiles + tile)
    if rows == 0:
        return
    expert, first = tl.load(tiles_ptr + tile).to(tl.int64), tl.load(tiles_ptr + tiles + tile)
    n, m = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    row = first + tl.minimum(m, rows - 1)
    if INT4:
        y, _ = int4_product(
            weight_ptr, scale_ptr, expert, h_ptr, row, n, one, D, INNER, 1, DOT, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
    else:
        y, _ = _product(
            weight_ptr, expert, h_ptr, row, n, D, INNER, 1, NATIVE, DOT, IMPRECISE, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
    if scale_ptr is not None and not INT4:
        y *= tl.load(scale_ptr + expert * D + n, mask=n < D, other=0.0)[:, None]
    if h_scale_ptr is not None:
        y *= tl.load(h_scale_ptr + row)[None, :]
    pair = tl.load(pair_ptr + row)
    y *= tl.load(weights_ptr + pair)[None, :]
    out_ptr += pair[None, :].to(tl.int64) * D + n[:, None]
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=(n < D)[:, None] & (m < rows)[None, :])


@triton.jit
def sum_choices_kernel(rows_ptr, out_ptr, D: tl.constexpr, A: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_for_earlier(PDL)
    t = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for a in tl.range(0, A, loop_unroll_factor=4):
        total += tl.load(rows_ptr + (t * A + a) * D + n, mask=n < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * D + n, total.to(out_ptr.dtype.element_ty), mask=n < D)


def moe_experts(x: torch.Tensor, routing: Routing, experts: ExpertWeights, activations: Activations) -> torch.Tensor:
    """Route, order, [quantise,] fc1, [quantise,] fc2, sum: no step waits for the host."""
    T, A = routing.experts.shape
    E, D, inner = len(experts.fc1), x.shape[1], experts.inner
    assert_dense(experts.fc1, experts.fc2, experts.fc1_scale, experts.fc2_scale)
    assert routing.counts is not None, "rows in expert order need the routing of the compiled moe_route"
    fp8, target, block_m = activations == "fp8", target_of(x), block_rows(T * A, E, x.dtype)
    order = expert_order(routing.experts, routing.counts, block_m)
    tiles, rows = order.tiles.shape[1], T * A
    stored = experts.fc1.dtype
    native_dot = fp8 and target.native_fp8
    meaning = {
        "INT4": experts.int4,
        "NATIVE": target.native_fp8,
        "DOT": tl.float8e4nv if native_dot else dot_type(x.dtype),
    }
    sizes = {"D": D, "INNER": inner, **meaning}
    h = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
    y = torch.empty(rows, D, dtype=x.dtype, device=x.device)
    out = torch.empty(T, D, dtype=x.dtype, device=x.device)

    fc1, scale = bits(experts.fc1), _scale(experts, experts.fc1_scale)
    taken, taken_scale = quantise_rows(x) if fp8 else (x.contiguous(), None)
    config = product_config(target, block_m, inner, D, x.dtype, stored, fp8, halves=2)
    grid = (tiles * triton.cdiv(inner, config.blocks["BLOCK_N"]),)
    args = (bits(taken), taken_scale, fc1, scale, order.pair, order.tiles, h, ONE, tiles, A)
    imprecise = _imprecise(target, config) if native_dot else None
    launch(grouped_fc1_kernel, grid, *args, **sizes, IMPRECISE=imprecise, config=config)

    fc2, scale, weights = bits(experts.fc2), _scale(experts, experts.fc2_scale), routing.weights.contiguous()
    taken, taken_scale = quantise_rows(h) if fp8 else (h, None)
    config = product_config(target, block_m, D, inner, x.dtype, stored, fp8, halves=1)
    grid = (tiles * triton.cdiv(D, config.blocks["BLOCK_N"]),)
    args2 = (bits(taken), taken_scale, fc2, scale, weights, order.pair, order.tiles, y, ONE, tiles)
    imprecise = _imprecise(target, config) if native_dot else None
    launch(grouped_fc2_kernel, grid, *args2, **sizes, IMPRECISE=imprecise, config=config)

    launch(sum_choices_kernel, (T, triton.cdiv(D, SUM.blocks["BLOCK"])), y, out, D=D, A=A, config=SUM)
    return out


def _imprecise(target: Target, config: Config) -> int | None:
    """Terms of an fp8 product until they go to a float32 sum: Hopper adds them up in fewer bits than that has.

    Triton takes no more of them than one step of the product has.
    """
    return min(128, config.blocks["BLOCK_K"]) if target.capability == 90 else None


def _scale(experts: ExpertWeights, scale: torch.Tensor | None) -> torch.Tensor | None:
    return words(scale) if experts.int4 and scale is not None else scale
