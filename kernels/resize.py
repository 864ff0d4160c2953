"""Resizing of uint8 pictures with Lanczos's window, to the byte as Pillow's `LANCZOS` does it.

Along a side of n pixels that becomes m, with s = max(n / m, 1) and L(t) = sinc(t) sinc(t / 3) for |t| < 3, else 0:

    c_i   = (i + 1/2) n / m                centre of pixel i of the result
    w_ix  = L((x + 1/2 - c_i) / s)         for 0 <= x < n and round(c_i - 3 s) <= x < round(c_i + 3 s)
    k_ix  = round(2^22 w_ix / sum_x w_ix)  integers, |k| < 2^23
    out_i = clip(floor((sum_x k_ix p_x + 2^21) / 2^22), 0, 255)

One side is resized first, rounded as above, then the other one of what that gave. Sums are exact in float32, in
whatever order and also where products are taken in bfloat16 or TF32: a coefficient is three digits of 8 bits,
k = 2^16 d_0 + 2^8 d_1 + d_2 with -128 <= d <= 127, and a sum of up to MAX_TAPS products of a digit and a pixel stays
below 2^24. So results depend on no device. They can differ from Pillow's only where the sines of its C library and of
NumPy round a coefficient differently, which takes one within 1e-9 of a half: a sum is then off by at most 255 in 2^22.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

MAX_TAPS = (1 << 24) // (128 * 255)  # 514
BLOCK = 32  # pixels of the result that one product makes: its window overlaps the next one's by 6 s pixels
CHUNK_BYTES = 64 << 20  # of temporary tensors at a time, if that is more than a block's
_LOBES, _BITS, _DIGITS = 3, 22, 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResizeTable:
    """How a side of `source` pixels becomes one of `target`; of no use where they are equal.

    window  (blocks, W) int64: the pixels that each BLOCK of the result is made of
    digits  (blocks, 3 * BLOCK, W) int8: their coefficients, the leading digits of a whole block first
    """

    source: int
    target: int
    window: torch.Tensor
    digits: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.window.nbytes + self.digits.nbytes


def resize_taps(source: int, target: int) -> int:
    """Most pixels that one pixel of the result is made of."""
    return 2 * math.ceil(_LOBES * max(source / target, 1)) + 1


@functools.lru_cache(maxsize=64)
def resize_arrays(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """`window` and `digits` of a ResizeTable; not to be written to. Milliseconds the first time, up to 2 MB."""
    assert source > 0 and target > 0 and resize_taps(source, target) <= MAX_TAPS, (source, target)
    first, coefficients = _coefficients(source, target)
    blocks, taps = -(-target // BLOCK), coefficients.shape[1]
    begin = first[::BLOCK]
    width = int((first - np.repeat(begin, BLOCK)[:target]).max()) + taps
    dense = np.zeros((blocks * BLOCK, width), dtype=np.int64)
    columns = (first - np.repeat(begin, BLOCK)[:target])[:, None] + np.arange(taps)
    np.put_along_axis(dense[:target], columns, coefficients, axis=1)
    digits = np.empty((blocks, _DIGITS, BLOCK, width), dtype=np.int8)
    rest = dense.reshape(blocks, BLOCK, width)
    for place in reversed(range(_DIGITS)):
        digits[:, place] = digit = ((rest + 128) & 255) - 128
        rest = (rest - digit) >> 8
    assert not rest.any()
    window = (begin[:, None] + np.arange(width)).clip(max=source - 1)  # beyond the side coefficients are 0
    return window, digits.reshape(blocks, _DIGITS * BLOCK, width)


def _coefficients(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first pixel that each of the result is made of (target,), and the coefficients k from there on
    (target, taps); in float64 and in Pillow's order of operations, for a coefficient may not round otherwise.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    reach = _LOBES * stretch
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum(centres - reach + 0.5, 0).astype(np.int64)
    last = np.minimum(centres + reach + 0.5, source).astype(np.int64)
    at = first[:, None] + np.arange(resize_taps(source, target))
    weights = np.where(at < last[:, None], _lanczos((at - centres[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    return first, np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)


def _lanczos(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.abs(t) < _LOBES, _sinc(t) * _sinc(t / _LOBES), 0.0)


def _sinc(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.where(t == 0, 1.0, t * np.pi)
    return np.where(t == 0, 1.0, np.sin(x) / x)


def resize_lanczos(
    picture: torch.Tensor, across: ResizeTable, down: ResizeTable, *, down_first: bool = False
) -> torch.Tensor:
    """(height, width, C) uint8 of a picture (H, W, C) uint8; `across` makes W pixels `width`, `down` makes H `height`.

    Temporary tensors take about CHUNK_BYTES, or what one block needs; the result of the first step lies beside them.
    """
    assert picture.dtype == torch.uint8 and picture.dim() == 3, (picture.dtype, picture.shape)
    assert picture.shape[:2] == (down.source, across.source), (picture.shape, down.source, across.source)
    if down_first:
        return _resized_across(_resized_across(picture.transpose(0, 1), down), across).transpose(0, 1)
    return _resized_across(_resized_across(picture, across), down)


def _resized_across(picture: torch.Tensor, table: ResizeTable) -> torch.Tensor:
    """(target, A, C) of (A, source, C)."""
    A, _, C = picture.shape
    lines = picture.transpose(0, 1)
    if table.source == table.target:
        return lines
    blocks, width = table.window.shape
    out = picture.new_empty(blocks, BLOCK, A * C)
    numbers = width + 2 * _DIGITS * BLOCK  # of 4 bytes, a block and number of a pixel's row: operand, product, integers
    step = max(1, CHUNK_BYTES // (4 * numbers * A * C))
    for at in range(0, blocks, step):
        window, digits = table.window[at : at + step], table.digits[at : at + step]
        pixels = lines.index_select(0, window.flatten()).view(len(window), width, A * C)
        sums = torch.bmm(digits.float(), pixels.float()).to(torch.int32)
        leading, middle, trailing = sums.view(len(window), _DIGITS, BLOCK, A * C).unbind(1)
        total = leading.mul_(256).add_(middle).mul_(256).add_(trailing).add_(1 << (_BITS - 1))
        out[at : at + step] = total.bitwise_right_shift_(_BITS).clamp_(0, 255)
    return out.view(blocks * BLOCK, A, C)[: table.target]
