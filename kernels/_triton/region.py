"""Region heads: LayerNorm, then the largest logit of each tile of bins, then of each row, and the value it stands for.

Rows are taken 16 at a time for the sake of the matrix unit; a program whose rows are all of another kind than its
tile ends at once, and a row's own kind decides what is read of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton import norm
from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, dot_type, launch, power_of_2
from mdinfer.kernels.embedding import TokenKind
from mdinfer.kernels.norm import EPS
from mdinfer.kernels.region import RegionHeads

_ROWS = 16  # the fewest that a matrix instruction takes

# Bins of a program by the rows; not measured. The weights (4 or 8 MB) bound the time: with 16 bins a coordinate is
# 64 programs and a size 128, each with 4 stages of 4 KB in flight.
CONFIGS = {
    16: Config(blocks={"BINS": 16, "BLOCK": 128}, warps=4, stages=4),
    1 << 30: Config(blocks={"BINS": 32, "BLOCK": 128}, warps=4, stages=4),
}

_COORD = tl.constexpr(int(TokenKind.COORD))
_SIZE = tl.constexpr(int(TokenKind.SIZE))


@triton.jit(do_not_specialize=["kinds_ptr", "B"])
def heads_kernel(
    h_ptr, kinds_ptr, coord_weight_ptr, coord_bias_ptr, size_weight_ptr, size_bias_ptr, peaks_ptr, places_ptr, B,
    D: tl.constexpr, COORD_BINS: tl.constexpr, SIZE_BINS: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Tiles: all of the coordinate's, then of the width's, then of the height's."""
    wait_for_earlier(PDL)
    tile = tl.program_id(1)
    coord_tiles: tl.constexpr = (COORD_BINS + BINS - 1) // BINS
    size_tiles: tl.constexpr = (SIZE_BINS + BINS - 1) // BINS
    is_coord = tile < coord_tiles
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kinds = tl.load(kinds_ptr + rows, mask=rows < B, other=0)
    wanted = kinds == tl.where(is_coord, _COORD, _SIZE)
    if tl.max(wanted.to(tl.int32), axis=0) == 0:
        return
    second = tile >= coord_tiles + size_tiles
    local = tl.where(is_coord, tile, tile - coord_tiles - tl.where(second, size_tiles, 0))
    bins = local * BINS + tl.arange(0, BINS)
    inside = bins < tl.where(is_coord, COORD_BINS, SIZE_BINS)
    entries = (bins + tl.where(second, SIZE_BINS, 0)).to(tl.int64)
    if is_coord:
        weight_ptr, bias_ptr = coord_weight_ptr, coord_bias_ptr
    else:
        weight_ptr, bias_ptr = size_weight_ptr, size_bias_ptr
    steps = tl.arange(0, BLOCK)
    h_ptrs = h_ptr + rows.to(tl.int64)[:, None] * D + steps[None, :]
    weight_ptrs = weight_ptr + entries[None, :] * D + steps[:, None]
    logits = tl.zeros((ROWS, BINS), tl.float32)
    for start in range(0, D, BLOCK):
        whole = steps < D - start
        h = tl.load(h_ptrs + start, mask=wanted[:, None] & whole[None, :], other=0.0)
        weight = tl.load(weight_ptrs + start, mask=inside[None, :] & whole[:, None], other=0.0)
        logits = tl.dot(h.to(DOT), weight.to(DOT), logits, input_precision="ieee")
    logits += tl.load(bias_ptr + entries, mask=inside, other=0.0).to(tl.float32)[None, :]
    logits = tl.where(inside[None, :], logits, float("-inf"))
    bad = tl.max((logits != logits).to(tl.int32), axis=1)
    peaks = tl.max(logits, axis=1)
    places = tl.min(tl.where(logits == peaks[:, None], bins[None, :], COORD_BINS + SIZE_BINS), axis=1)
    at = rows.to(tl.int64) * TILES + tile
    tl.store(peaks_ptr + at, tl.where(bad != 0, float("nan"), peaks), mask=wanted)
    tl.store(places_ptr + at, places, mask=wanted)


@triton.jit
def _likeliest(peaks_ptr, places_ptr, TILES: tl.constexpr, LANES: tl.constexpr):
    """The bin with the largest logit of a head's tiles, as a float; NaN where a logit was."""
    lanes = tl.arange(0, LANES)
    peaks = tl.load(peaks_ptr + lanes, mask=lanes < TILES, other=float("-inf"))
    places = tl.load(places_ptr + lanes, mask=lanes < TILES, other=1 << 30)
    bad = tl.max((peaks != peaks).to(tl.int32), axis=0)
    place = tl.min(tl.where(peaks == tl.max(peaks, axis=0), places, 1 << 30), axis=0)
    return tl.where(bad != 0, float("nan"), place.to(tl.float32))


@triton.jit(do_not_specialize=["kinds_ptr"])
def values_kernel(
    kinds_ptr, peaks_ptr, places_ptr, values_ptr, COORD_BINS: tl.constexpr, SIZE_BINS: tl.constexpr,
    COORD_TILES: tl.constexpr, SIZE_TILES: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    kind = tl.load(kinds_ptr + row)
    at = row * (COORD_TILES + 2 * SIZE_TILES)
    first, second = 0.0, 0.0
    if kind == _COORD:
        place = _likeliest(peaks_ptr + at, places_ptr + at, COORD_TILES, LANES)
        first = tl.div_rn(place, COORD_BINS * 1.0)
    elif kind == _SIZE:
        at += COORD_TILES
        width = _likeliest(peaks_ptr + at, places_ptr + at, SIZE_TILES, LANES)
        at += SIZE_TILES
        height = _likeliest(peaks_ptr + at, places_ptr + at, SIZE_TILES, LANES)
        first = tl.exp2(tl.div_rn(width, SIZE_BINS - 1.0) * 10 - 10)
        second = tl.exp2(tl.div_rn(height, SIZE_BINS - 1.0) * 10 - 10)
    tl.store(values_ptr + 2 * row, first)
    tl.store(values_ptr + 2 * row + 1, second)


def region_values(hidden: torch.Tensor, kinds: torch.Tensor, heads: RegionHeads) -> torch.Tensor:
    (B, D), device = hidden.shape, hidden.device
    bins = {"COORD_BINS": heads.coord_weight.shape[0], "SIZE_BINS": heads.size_weight.shape[0] // 2}
    config = next(config for count, config in CONFIGS.items() if count >= B)
    coord_tiles, size_tiles = (triton.cdiv(count, config.blocks["BINS"]) for count in bins.values())
    tiles = coord_tiles + 2 * size_tiles
    peaks = torch.empty(B, tiles, dtype=torch.float32, device=device)
    places = torch.empty(B, tiles, dtype=torch.int32, device=device)
    values = torch.empty(B, 2, dtype=torch.float32, device=device)
    weights = (heads.coord_weight, heads.coord_bias, heads.size_weight, heads.size_bias)
    assert_dense(*weights)
    h, kinds = norm.layer_norm(hidden, heads.norm_weight, heads.norm_bias, EPS), kinds.contiguous()
    launch(
        heads_kernel,
        (triton.cdiv(B, _ROWS), tiles),
        *(h, kinds, *weights, peaks, places, B),
        **bins,
        D=D,
        TILES=tiles,
        ROWS=_ROWS,
        DOT=dot_type(hidden.dtype),
        config=config,
    )
    launch(
        values_kernel,
        (B,),
        *(kinds, peaks, places, values),
        **bins,
        COORD_TILES=coord_tiles,
        SIZE_TILES=size_tiles,
        LANES=power_of_2(max(coord_tiles, size_tiles)),
        config=Config(warps=1),
    )
    return values
