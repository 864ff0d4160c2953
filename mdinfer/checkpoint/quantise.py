"""Weights to fewer bits. The last dimension of a weight is its input dimension; a row over it is an output channel.

float8  value = scale * q, q in float8_e4m3fn (largest finite value 448), a float32 scale for each output channel
int8    value = scale * q, q in -127..127, a bfloat16 scale for each output channel; see `mdinfer.kernels.int8`
int4    value = least + step * q, q in 0..15, for each output channel and 128 inputs; see `mdinfer.kernels.int4`
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mdinfer.kernels import int8
from mdinfer.kernels.int4 import GROUP, HALF, INT4, MOST, pack, packed_shape, scale_shape
from mdinfer.kernels.int8 import INT8

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
QUANTISED = (FP8, INT8, INT4)  # what weights can be that have scales beside them
_SMALLEST = torch.finfo(torch.float32).tiny
# Parts of a group's range that its 16 values are spread over: what lies outside errs more, all else less.
_SHARES = (1.0, 0.9, 0.8)
_CPU_VALUES = 1 << 18  # taken at once on a CPU, within its caches: 2.5 times as fast as a million


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., R, K) of any float type -> float8 of the same shape, and float32 scales (..., R).

    scale = amax(|row|) / 448; q = round-to-nearest-even(row / scale), computed in float32. A row of zeros,
    and one so small that its scale would not be a normal float32, gets scale 1. The error of a value v
    is at most max(|v| / 16, scale / 1024): half a step of three mantissa bits, or of e4m3's subnormals.
    A row that holds NaN or infinity gets a scale that is not finite.
    """
    values = weight.float()
    scale = values.abs().amax(dim=-1) / FP8_MAX
    scale = torch.where(scale < _SMALLEST, 1.0, scale)
    return (values / scale.unsqueeze(-1)).to(FP8), scale


def quantise_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., R, K) of any float type -> int8 of the same shape, and bfloat16 scales (..., R).

    scale = amax(|row|) / 127 as the nearest bfloat16; q = round-to-nearest-even(row / scale), computed in float32. The
    largest quotient is 127 (1 + 2^-8) at most, which rounds to 127: so no value errs by more than scale / 2, besides
    float32's rounding of the quotient (127 * 2^-24 of a scale). A row of zeros, and one so small that its scale would
    not be a normal number, gets scale 1. A row that holds NaN or infinity gets a scale that is not finite.
    """
    values = weight.float()
    scale = (values.abs().amax(dim=-1) / int8.MOST).bfloat16()
    scale = torch.where(scale < _SMALLEST, 1.0, scale)
    return (values / scale.float().unsqueeze(-1)).round_().to(INT8), scale


def dequantise_rows(values: Tensor, scale: Tensor) -> Tensor:
    """float8 (..., R, K) and scales (..., R) -> float32 (..., R, K) = scale * value."""
    return values.float() * scale.float().unsqueeze(-1)


def int4_inputs(name: str, parameters: Mapping[str, Tensor]) -> int:
    """The inputs of an expert weight in int4, whose own shape says it in whole groups only.

    They are the other weight's outputs: all of fc2's, half of fc1's.
    """
    if name.endswith(".fc1.weight"):
        return parameters[name.replace(".fc1.", ".fc2.")].shape[1]
    return parameters[name.replace(".fc2.", ".fc1.")].shape[1] // 2


def quantise_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N, K) of any float type -> int4 of `mdinfer.kernels.int4`: bytes, and bfloat16 steps and least values.

    Of some ranges about the middle of a group's own, each group takes the one with the smallest squared error. Within
    it a value errs by at most half a step, besides the rounding of `least`. Beyond K the bytes hold 0. A group that
    holds NaN or infinity gets a step that is not finite.
    """
    shape = weight.shape
    packed = torch.empty(packed_shape(*shape), dtype=INT4, device=weight.device)
    scale = torch.empty(scale_shape(*shape), dtype=torch.bfloat16, device=weight.device)
    rows = max(1, _CPU_VALUES // shape[-1]) if weight.device.type == "cpu" else max(1, weight.numel())
    parts = (torch.split(x, rows) for x in (weight.flatten(0, -2), packed.flatten(0, -2), scale.flatten(0, -3)))
    for part, bytes_into, scale_into in zip(*parts, strict=True):
        _quantise_rows(part.float(), bytes_into, scale_into)
    return packed, scale


def _quantise_rows(values: Tensor, packed: Tensor, scale: Tensor) -> None:
    """Rows (R, K) into bytes (R, 64 G) and scales (R, G, 2)."""
    whole = values.shape[-1] // GROUP
    if whole:
        q, numbers = _quantise(values[:, : whole * GROUP].view(-1, whole, GROUP))
        packed[:, : whole * HALF].copy_(pack(q))
        scale[:, :whole].copy_(numbers)
    if rest := values.shape[-1] - whole * GROUP:
        q, numbers = _quantise(values[:, None, whole * GROUP :])
        packed[:, whole * HALF :].copy_(pack(F.pad(q, (0, GROUP - rest))))
        scale[:, whole:].copy_(numbers)


def _quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (R, G, n) -> q of the same shape, whole numbers in float32, and (R, G, 2) step and least."""
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)  # aminmax takes 13 times as long
    step, least = _spread(low, high, _SHARES[0])
    error = _error(values, step, least)
    first = step
    for share in _SHARES[1:]:
        other = _spread(low, high, share)
        off = _error(values, *other) * (other[0] / first).square_()
        better = off < error
        error = torch.where(better, off, error)
        step, least = torch.where(better, other[0], step), torch.where(better, other[1], least)
    return _in_steps(values, step, least).round_().clamp_(0, MOST), torch.cat((step, least), dim=-1)


def _spread(low: Tensor, high: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Step and least of a share of a range, each a number of bfloat16; of no range, no step and its middle."""
    step = ((high / MOST - low / MOST) * share).bfloat16().float()
    step = torch.where(step < _SMALLEST, 0.0, step)
    return step, ((low / 2 + high / 2) - MOST / 2 * step).bfloat16().float()


def _error(values: Tensor, step: Tensor, least: Tensor) -> Tensor:
    """Squared, in steps, of each group; on the way there it takes one copy of the values."""
    steps = _in_steps(values, step, least)
    return steps.sub_(steps.round().clamp_(0, MOST)).square_().sum(dim=-1, keepdim=True)


def _in_steps(values: Tensor, step: Tensor, least: Tensor) -> Tensor:
    return (values - least).div_(torch.where(step == 0, 1.0, step))
