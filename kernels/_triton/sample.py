"""The choice of the next token in two launches, or three where rows draw.

scan     a program for each tile of each row: largest logit, whose it is, sums of exponentials relative to it
gather   the same for rows that draw and whose likeliest token does not fill the nucleus alone: the tile's mass in
         whole numbers, and the ids that may lie in the nucleus, appended to the row's candidates. Where top_p is 1
         all are candidates, and their count says no more than that the row draws
choose   a program for each row: joins the tiles, draws, looks up where the token leads

A token is no candidate if all as unlikely as it together hold less than 1 - top_p: it follows the nucleus. How many
there are stays on the device. Tiles and chunks are the same for every batch, so that a row's arithmetic is too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, launch, power_of_2
from mdinfer.kernels._triton.nucleus import LOG2E, draw_from_nucleus, mass_of, scale_of, uniform_number
from mdinfer.kernels.sample import CONTROL_IDS, DecodeTable, Draws, Sampled

# Nothing here is measured.
CONFIGS = {
    # 8 logits a thread are one load of 16 bytes in bfloat16; 50 tiles of 51200 spread one row over the chip.
    "tile": Config(blocks={"BLOCK": 1024}, warps=4),
    # 8 pivots divide what is left by 9 a pass; a pass over 1024 candidates, more than most nuclei have, is one turn
    # of its loop, in which each of 512 threads weighs 16 pairs. Half of the threads need more registers than there
    # are, and half of the chunk twice the turns where nuclei are wide.
    "row": Config(blocks={"PIVOTS": 8, "CHUNK": 1024}, warps=16),
}
_CONTROL = tl.constexpr(CONTROL_IDS)
_ZEROS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # low bits that float32 has more of


@triton.jit
def _allowed_logits(logits_ptr, mask, columns, V: tl.constexpr):
    """float32 logits, minus infinity at what the state's mask bars."""
    allowed = (columns < V) & (((mask >> tl.minimum(columns, _CONTROL)) & 1) != 0)
    return tl.load(logits_ptr + columns, mask=allowed, other=float("-inf")).to(tl.float32), allowed


@triton.jit
def _row_peak(peaks_ptr, TILES: tl.constexpr, LANES: tl.constexpr):
    """Largest logits of the row's tiles and of the row, which is NaN where one of them is."""
    lanes = tl.arange(0, LANES)
    peaks = tl.load(peaks_ptr + lanes, mask=lanes < TILES, other=float("-inf"))
    bad = tl.max((peaks != peaks).to(tl.int32), axis=0)
    return peaks, tl.where(bad != 0, float("nan"), tl.max(peaks, axis=0))


@triton.jit
def _row_sum(sums_ptr, peaks, peak, scale, TILES: tl.constexpr, LANES: tl.constexpr):
    """Sums relative to the tiles' peaks, joined relative to the row's."""
    lanes = tl.arange(0, LANES)
    sums = tl.load(sums_ptr + lanes, mask=lanes < TILES, other=0.0)
    return tl.sum(sums * tl.exp2((peaks - peak) * scale), axis=0)


@triton.jit
def _least_odds(odds_sum, top_p, V: tl.constexpr):
    """Below it a token is no candidate, with 1% for what sums in float32 may be off."""
    return 0.99 * (1 - top_p) * odds_sum / V


@triton.jit(do_not_specialize=["states_ptr", "temperature_ptr"])
def scan_kernel(
    logits_ptr, stride, states_ptr, masks_ptr, temperature_ptr, peaks_ptr, places_ptr, sums_ptr, totals_ptr,
    counts_ptr, V: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mask = tl.load(masks_ptr + tl.load(states_ptr + row))
    columns = tile * BLOCK + tl.arange(0, BLOCK)
    row_ptr = logits_ptr + row * stride
    x, allowed = _allowed_logits(row_ptr, mask, columns, V)
    bad = tl.max((x != x).to(tl.int32), axis=0)
    peak = tl.max(x, axis=0)
    lowest = tl.min(tl.where(x == peak, columns, V - 1), axis=0)
    highest = tl.max(tl.where((x == peak) & allowed, columns, 0), axis=0)
    upwards = (mask >> _CONTROL) == 0
    base = tl.where(peak == float("-inf"), 0.0, peak)
    at = row * TILES + tile
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row)
        upwards = upwards & (temperature <= 0)
        tl.store(sums_ptr + at, tl.sum(tl.exp2((x - base) * scale_of(temperature)), axis=0))
        tl.store(counts_ptr + row, 0, mask=tile == 0)
    if totals_ptr is not None:
        tl.store(totals_ptr + at, tl.sum(tl.exp2((x - base) * LOG2E), axis=0))
        tl.store(row_ptr + columns, float("-inf"), mask=(columns < V) & (allowed == 0))
    tl.store(peaks_ptr + at, tl.where(bad != 0, float("nan"), peak))
    tl.store(places_ptr + at, tl.where(upwards, highest, lowest))


@triton.jit(do_not_specialize=["states_ptr", "temperature_ptr", "top_p_ptr"])
def gather_kernel(
    logits_ptr, stride, states_ptr, masks_ptr, temperature_ptr, top_p_ptr, peaks_ptr, sums_ptr, counts_ptr,
    masses_ptr, ids_ptr, V: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature, top_p = tl.load(temperature_ptr + row), tl.load(top_p_ptr + row)
    scale = scale_of(temperature)
    peaks, peak = _row_peak(peaks_ptr + row * TILES, TILES, LANES)
    odds_sum = _row_sum(sums_ptr + row * TILES, peaks, peak, scale, TILES, LANES)
    if (temperature > 0) & (tl.abs(peak) < float("inf")) & (top_p * odds_sum >= 1):
        mask = tl.load(masks_ptr + tl.load(states_ptr + row))
        columns = tile * BLOCK + tl.arange(0, BLOCK)
        x, _ = _allowed_logits(logits_ptr + row * stride, mask, columns, V)
        tl.store(masses_ptr + row * TILES + tile, tl.sum(mass_of(x, peak, scale), axis=0))
        if top_p < 1:
            likely = tl.exp2((x - peak) * scale) >= _least_odds(odds_sum, top_p, V)
            count = tl.sum(likely.to(tl.int32), axis=0)
            if count > 0:
                first = tl.atomic_add(counts_ptr + row, count, sem="relaxed")
                place = first + tl.cumsum(likely.to(tl.int32), axis=0) - 1
                tl.store(ids_ptr + row * (2 * V) + place, columns, mask=likely)
        else:
            tl.store(counts_ptr + row, 1)


@triton.jit
def _draw_in_order(logits_ptr, mask, masses, number, peak, scale, V: tl.constexpr, BLOCK: tl.constexpr):
    """The id at which the running sum of all ids as they come passes its share: first the tile, then the id in it."""
    share = (number * tl.sum(masses, axis=0).to(tl.float64)).to(tl.int64)
    reached = tl.cumsum(masses, axis=0)
    tile = tl.sum((reached <= share).to(tl.int32), axis=0)
    before = tl.max(tl.where(reached <= share, reached, 0), axis=0)
    x, _ = _allowed_logits(logits_ptr, mask, tile * BLOCK + tl.arange(0, BLOCK), V)
    reached = before + tl.cumsum(mass_of(x, peak, scale), axis=0)
    return tile * BLOCK + tl.sum((reached <= share).to(tl.int32), axis=0)


@triton.jit(
    do_not_specialize=["states_ptr", "temperature_ptr", "top_p_ptr", "uniform_ptr", "seeds_ptr", "steps_ptr", "B"]
)
def choose_kernel(
    logits_ptr, stride, states_ptr, masks_ptr, follows_ptr, kinds_ptr, temperature_ptr, top_p_ptr, uniform_ptr,
    seeds_ptr, steps_ptr, peaks_ptr, places_ptr, sums_ptr, totals_ptr, counts_ptr, masses_ptr, ids_ptr, choice_ptr,
    logprobs_ptr, B, V: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, ID_BITS: tl.constexpr,
    ZEROS: tl.constexpr, BLOCK: tl.constexpr, PIVOTS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(states_ptr + row)
    lanes = tl.arange(0, LANES)
    row_ptr = logits_ptr + row * stride
    peaks, peak = _row_peak(peaks_ptr + row * TILES, TILES, LANES)
    places = tl.load(places_ptr + row * TILES + lanes, mask=lanes < TILES, other=V - 1)
    token = tl.min(tl.where(peaks == peak, places, V - 1), axis=0)
    sound = tl.abs(peak) < float("inf")
    if temperature_ptr is not None:
        # Whether the row draws is asked once, of `gather`: two kernels may round a sum apart.
        count = tl.load(counts_ptr + row)
        if count > 0:
            top_p, scale = tl.load(top_p_ptr + row), scale_of(tl.load(temperature_ptr + row))
            odds_sum = _row_sum(sums_ptr + row * TILES, peaks, peak, scale, TILES, LANES)
            if uniform_ptr is not None:
                number = tl.load(uniform_ptr + row).to(tl.float64)
            else:
                number = uniform_number(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
            masses = tl.load(masses_ptr + row * TILES + lanes, mask=lanes < TILES, other=0)
            if top_p < 1:
                token = draw_from_nucleus(
                    row_ptr, ids_ptr + row * (2 * V), ids_ptr + row * (2 * V) + V, count,
                    _least_odds(odds_sum, top_p, V), top_p, number, tl.sum(masses, axis=0), peak, scale,
                    ID_BITS, ZEROS, PIVOTS, CHUNK,
                )  # fmt: skip
            else:
                mask = tl.load(masks_ptr + state)
                token = _draw_in_order(row_ptr, mask, masses, number, peak, scale, V, BLOCK)
    if totals_ptr is not None:
        total = peak + tl.log(_row_sum(totals_ptr + row * TILES, peaks, peak, LOG2E, TILES, LANES))
        tl.store(logprobs_ptr + row, tl.load(row_ptr + token).to(tl.float32) - total)
        tl.store(logprobs_ptr + B + row, total)
    at = state * (_CONTROL + 1) + tl.minimum(token, _CONTROL)
    tl.store(choice_ptr + row, token.to(tl.int64))
    tl.store(choice_ptr + B + row, tl.load(kinds_ptr + at))
    tl.store(choice_ptr + 2 * B + row, tl.load(follows_ptr + at))
    tl.store(choice_ptr + 3 * B + row, sound.to(tl.int64))


def sample(
    logits: torch.Tensor, states: torch.Tensor, table: DecodeTable, draws: Draws | None, top_logprobs: int | None
) -> Sampled:
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    B, V = logits.shape
    tile = CONFIGS["tile"]
    BLOCK = min(tile.blocks["BLOCK"], power_of_2(V))
    TILES = triton.cdiv(V, BLOCK)
    sizes = {"V": V, "TILES": TILES}
    LANES, drawing, scoring = power_of_2(TILES), draws is not None, top_logprobs is not None

    def parts(dtype: torch.dtype, wanted: bool = True, columns: int = TILES) -> torch.Tensor | None:
        return torch.empty(B, columns, dtype=dtype, device=logits.device) if wanted else None

    peaks, places = parts(torch.float32), parts(torch.int32)
    sums, totals = parts(torch.float32, drawing), parts(torch.float32, scoring)
    counts, masses = parts(torch.int32, drawing, 1), parts(torch.int64, drawing)
    ids = parts(torch.int32, drawing, 2 * V)
    given: list[torch.Tensor | None] = [None] * 5
    if draws is not None:
        given = [draws.temperature, draws.top_p, draws.uniform, draws.seeds, draws.steps]
    temperature, top_p, *number = (None if part is None else part.contiguous() for part in given)
    choice = torch.empty(4, B, dtype=torch.int64, device=logits.device)
    scores = torch.empty(2, B, dtype=torch.float32, device=logits.device) if scoring else None
    cut = Config(blocks={"BLOCK": BLOCK}, warps=tile.warps)
    source = (logits, logits.stride(0), states.contiguous(), table.masks)

    launch(scan_kernel, (B, TILES), *source, temperature, peaks, places, sums, totals, counts, **sizes, config=cut)
    if drawing:
        launch(
            gather_kernel, (B, TILES), *source, temperature, top_p, peaks, sums, counts, masses, ids,
            **sizes, LANES=LANES, config=cut,
        )  # fmt: skip
    launch(
        choose_kernel, (B,), *source, table.follows, table.kinds, temperature, top_p, *number, peaks, places, sums,
        totals, counts, masses, ids, choice, scores, B, **sizes, LANES=LANES, ID_BITS=(V - 1).bit_length(),
        ZEROS=_ZEROS[logits.dtype], BLOCK=BLOCK, config=CONFIGS["row"],
    )  # fmt: skip
    if scores is None:
        return Sampled(choice=choice, logprobs=None, top_tokens=None, top_logprobs=None)
    top = logits.topk(min(top_logprobs or 0, V), dim=-1)
    return Sampled(
        choice=choice,
        logprobs=scores[0],
        top_tokens=top.indices,
        top_logprobs=top.values.float() - scores[1][:, None],
    )
