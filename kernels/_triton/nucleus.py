"""Drawing a token without a sort: masses as whole numbers, and the token at which their running sum passes a limit.

A token's mass is exp((x - peak) / temperature) in units of 2^-40, rounded down: whole numbers add up to the same
whatever the order, so that a draw depends on nothing but its row. Tokens are ordered by a key that no two share: the
logit's place among all floats, then that of its id from the end. Of a float32 that was a shorter float the low bits,
ZEROS of them, are left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
COLDEST = tl.constexpr(1e-30)  # that of the contract
ONE = tl.constexpr(1 << 40)  # the peak's mass: 2^23 tokens of it still fit into 64 bits


@triton.jit
def scale_of(temperature):
    """What turns a difference of logits into a power of 2."""
    return LOG2E / tl.maximum(temperature, COLDEST)


@triton.jit
def mass_of(x, peak, scale):
    return (tl.exp2((x - peak) * scale) * ONE).to(tl.int64)


@triton.jit
def uniform_number(seed, step):
    """`uniform` of the contract in float64, which holds its products with masses."""
    zero = (seed * 0).to(tl.uint32)
    low_step, high_step = step.to(tl.uint32), (step >> 32).to(tl.uint32)
    low_seed, high_seed = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox_impl(low_step, high_step, zero, zero, low_seed, high_seed)
    return (word >> 8).to(tl.float64) * (2.0**-24)


@triton.jit
def _place_of(x, ZEROS: tl.constexpr):
    """int64 from 0 up, rising with the float; both zeros have one place. ZEROS low bits of the float are not told."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return (tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> ZEROS).to(tl.int64) + (1 << (31 - ZEROS))


@triton.jit
def _float_at(place, ZEROS: tl.constexpr):
    """The inverse of `_place_of`."""
    bits = ((place - (1 << (31 - ZEROS))) << ZEROS).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _keys(logits_ptr, ids_ptr, start, count, ID_BITS: tl.constexpr, ZEROS: tl.constexpr, CHUNK: tl.constexpr):
    """Logits and keys of one chunk of candidates; minus infinity and -1 beyond the last."""
    lanes = start + tl.arange(0, CHUNK)
    ids = tl.load(ids_ptr + lanes, mask=lanes < count, other=0)
    x = tl.load(logits_ptr + ids, mask=lanes < count, other=float("-inf")).to(tl.float32)
    keys = (_place_of(x, ZEROS) << ID_BITS) + ((1 << ID_BITS) - 1 - ids)
    return x, tl.where(lanes < count, keys, -1)


@triton.jit
def _pivots(low, high, ID_BITS: tl.constexpr, ZEROS: tl.constexpr, PIVOTS: tl.constexpr):
    """Keys between two: at even steps of the logit, or of the key where the logit's fall on the ends."""
    step = tl.arange(0, PIVOTS) + 1
    by_key = low + (high - low) * step // (PIVOTS + 1)
    bottom, top = _float_at(low >> ID_BITS, ZEROS), _float_at(high >> ID_BITS, ZEROS)
    between = bottom + (top - bottom) * (step.to(tl.float32) / (PIVOTS + 1))
    by_logit = _place_of(between, ZEROS) << ID_BITS
    return tl.where((by_logit > low) & (by_logit < high), by_logit, by_key)


@triton.jit
def _weigh(
    logits_ptr,
    ids_ptr,
    count,
    pivots,
    peak,
    scale,
    ID_BITS: tl.constexpr,
    ZEROS: tl.constexpr,
    PIVOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Mass and number of the candidates from each pivot on."""
    masses, counts = tl.zeros((PIVOTS,), tl.int64), tl.zeros((PIVOTS,), tl.int32)
    for start in range(0, count, CHUNK):
        x, keys = _keys(logits_ptr, ids_ptr, start, count, ID_BITS, ZEROS, CHUNK)
        above = keys[None, :] >= pivots[:, None]
        masses += tl.sum(tl.where(above, mass_of(x, peak, scale)[None, :], 0), axis=1)
        counts += tl.sum(above.to(tl.int32), axis=1)
    return masses, counts


@triton.jit
def _narrow(low, low_mass, low_count, high, high_mass, high_count, pivots, masses, counts, limit):
    """The closest bounds: mass from `low` on exceeds the limit, that from `high` on does not."""
    over = masses > limit
    low = tl.maximum(low, tl.max(tl.where(over, pivots, low), axis=0))
    low_mass = tl.min(tl.where(over, masses, low_mass), axis=0)
    low_count = tl.min(tl.where(over, counts, low_count), axis=0)
    high = tl.min(tl.where(over, high, pivots), axis=0)
    high_mass = tl.max(tl.where(over, high_mass, masses), axis=0)
    high_count = tl.max(tl.where(over, high_count, counts), axis=0)
    return low, low_mass, low_count, high, high_mass, high_count


@triton.jit
def _keep(
    logits_ptr, ids_ptr, spare_ptr, count, low, high, ID_BITS: tl.constexpr, ZEROS: tl.constexpr, CHUNK: tl.constexpr
):
    """Copy the candidates between two bounds to `spare_ptr`; the barriers are for its readers, before and after."""
    tl.debug_barrier()
    kept = 0
    for start in range(0, count, CHUNK):
        _x, keys = _keys(logits_ptr, ids_ptr, start, count, ID_BITS, ZEROS, CHUNK)
        inside = (keys >= low) & (keys < high)
        place = kept + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        ids = (1 << ID_BITS) - 1 - (keys & ((1 << ID_BITS) - 1))
        tl.store(spare_ptr + place, ids.to(tl.int32), mask=inside)
        kept += tl.sum(inside.to(tl.int32), axis=0)
    tl.debug_barrier()
    return kept


@triton.jit
def _crossing(
    logits_ptr, ids_ptr, spare_ptr, count, limit, low, low_mass, low_count, high, pivots, masses, counts, peak, scale,
    ID_BITS: tl.constexpr, ZEROS: tl.constexpr, PIVOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The key at which the sum from the top first exceeds `limit`; mass and number of the candidates from it on.

    The same are given of a lower bound `low`; `high` lies above all keys. A first pass over all candidates is given
    too; what it leaves of more than a chunk is copied together, for later passes to read only that.
    """
    low, low_mass, low_count, high, high_mass, high_count = _narrow(
        low, low_mass, low_count, high, tl.zeros_like(low_mass), tl.zeros_like(low_count), pivots, masses, counts, limit
    )
    base_mass, base_count = tl.zeros_like(low_mass), tl.zeros_like(low_count)
    if count > CHUNK:
        count = _keep(logits_ptr, ids_ptr, spare_ptr, count, low, high, ID_BITS, ZEROS, CHUNK)
        ids_ptr, base_mass, base_count = spare_ptr, high_mass, high_count
    while (low_count - high_count > 1) & (high - low > 1):
        pivots = _pivots(low, high, ID_BITS, ZEROS, PIVOTS)
        masses, counts = _weigh(logits_ptr, ids_ptr, count, pivots, peak, scale, ID_BITS, ZEROS, PIVOTS, CHUNK)
        masses, counts = masses + base_mass, counts + base_count
        low, low_mass, low_count, high, high_mass, high_count = _narrow(
            low, low_mass, low_count, high, high_mass, high_count, pivots, masses, counts, limit
        )
    key = high
    for start in range(0, count, CHUNK):
        _x, keys = _keys(logits_ptr, ids_ptr, start, count, ID_BITS, ZEROS, CHUNK)
        key = tl.minimum(key, tl.min(tl.where(keys >= low, keys, high), axis=0))
    return key, low_mass, low_count


@triton.jit
def draw_from_nucleus(
    logits_ptr, ids_ptr, spare_ptr, count, least, top_p, number, total, peak, scale,
    ID_BITS: tl.constexpr, ZEROS: tl.constexpr, PIVOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The id of one of `count` candidates, all of odds of at least `least`, which hold the nucleus.

    total is the mass of all tokens, candidates or not.
    """
    limit = (top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    low = _place_of(peak + (tl.log2(least) - 1) / scale, ZEROS) << ID_BITS
    high = (_place_of(peak, ZEROS) + 1) << ID_BITS
    pivots = _pivots(low, high, ID_BITS, ZEROS, PIVOTS)
    masses, counts = _weigh(logits_ptr, ids_ptr, count, pivots, peak, scale, ID_BITS, ZEROS, PIVOTS, CHUNK)
    last, kept, kept_count = _crossing(
        logits_ptr, ids_ptr, spare_ptr, count, limit, low, total, count, high, pivots, masses, counts, peak, scale,
        ID_BITS, ZEROS, PIVOTS, CHUNK,
    )  # fmt: skip
    share = (number * kept.to(tl.float64)).to(tl.int64)
    key, _, _ = _crossing(
        logits_ptr, ids_ptr, spare_ptr, count, share, last, kept, kept_count, high, pivots, masses, counts, peak, scale,
        ID_BITS, ZEROS, PIVOTS, CHUNK,
    )  # fmt: skip
    return ((1 << ID_BITS) - 1 - (key & ((1 << ID_BITS) - 1))).to(tl.int32)
