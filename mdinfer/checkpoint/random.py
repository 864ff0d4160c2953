"""Plausible random weights, for benchmarks and tests that need a model but no checkpoint.

Activations keep their scale through the layers and tokens spread over the experts; the text is nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor

from mdinfer.checkpoint.quantise import FP8, FP8_MAX, QUANTISED, int4_inputs
from mdinfer.checkpoint.tensors import blocks, one_thread
from mdinfer.kernels import int8
from mdinfer.kernels.int4 import GROUP, INT4, MOST, pack
from mdinfer.kernels.int8 import INT8

_POOL = 1 << 24  # normals that are drawn; all weights are windows of them
_WINDOW = 1 << 22  # most elements of one window
_TAIL = 6.0  # |normals| of a pool are below this; values beyond are clamped
_INT4_STEP = 0.35  # of a deviation: 128 normals span about 5.3

_NORM = re.compile(r"\.(ln|ln1|ln2|post_ln)\.weight$")


def random_weights(targets: Mapping[str, Tensor], *, seed: int = 0) -> None:
    """Fill every parameter in place: the same values for the same names, shapes and seed on every device.

    Drawing billions of normals takes minutes on a CPU. So 16 M of them are drawn once, and each run of up to
    4 M elements takes a window of them from a random place: values repeat, but a matrix does not repeat its
    rows. float8, int8 and int4 parameters take windows of the pool in their type, and `.scale` parameters give them
    the spread that the weight would have. Temporaries: the pool, 64 MB, 16 MB more in float8 or int8, as much again on
    a GPU.
    """
    with torch.inference_mode(), one_thread():
        _fill_all(targets, seed)


def _fill_all(targets: Mapping[str, Tensor], seed: int) -> None:
    size = min(_POOL, _WINDOW + sum(target.numel() for target in targets.values()))
    pool = torch.randn(size, generator=torch.Generator().manual_seed(seed)).clamp_(-_TAIL, _TAIL)
    pools: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    place = Random(seed)
    for name in sorted(targets):
        target = targets[name]
        kind = target.dtype if target.dtype in QUANTISED else pool.dtype
        if (target.device, kind) not in pools:
            pools[target.device, kind] = _pool(pool, kind).to(target.device)
        steps = target[..., 0] if _is_int4_scale(name, target) else target
        _fill(steps, pools[target.device, kind], *_spread(name, targets), place)
        if steps is not target:
            torch.mul(steps, -MOST / 2, out=target[..., 1])


def _pool(pool: Tensor, kind: torch.dtype) -> Tensor:
    """The normals in this type; in float8 and int8 the largest is its largest, in int4 its range ends at 2.6."""
    if kind is FP8:
        return (pool * (FP8_MAX / _TAIL)).to(FP8)
    if kind is INT8:
        return (pool * (int8.MOST / _TAIL)).round_().to(INT8)
    if kind is INT4:
        return pack(
            (pool / _INT4_STEP + MOST / 2).round_().clamp_(0, MOST)[: pool.numel() // GROUP * GROUP].view(-1, GROUP)
        )
    return pool


def _is_int4_scale(name: str, target: Tensor) -> bool:
    return name.endswith(".scale") and target.ndim == 4


def _fill(target: Tensor, pool: Tensor, mean: float, deviation: float, place: Random) -> None:
    for block in blocks(target.shape, _WINDOW):
        into = target[block]
        start = place.randrange(pool.numel() - into.numel() + 1)
        window = pool[start : start + into.numel()].view(into.shape)
        if target.dtype in QUANTISED:
            into.copy_(window)
        elif mean:
            into.copy_(window * deviation + mean)
        else:
            torch.mul(window, deviation, out=into)  # rounds to the parameter's type on the way out


def _spread(name: str, targets: Mapping[str, Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of a parameter's values, by its name and shape."""
    fan_in = targets[name].shape[-1]
    if name.endswith(".scale"):
        name = name.removesuffix("scale") + "weight"
        weight = targets[name]
        if weight.dtype is INT4:
            step = int4_inputs(name, targets) ** -0.5 * _INT4_STEP
            return step, step / 16
        scale = weight.shape[-1] ** -0.5 * _TAIL / (int8.MOST if weight.dtype is INT8 else FP8_MAX)
        return scale, scale / 16  # at most 6 deviations off: never negative
    if _NORM.search(name):
        return 1.0, 0.05
    if name.endswith(".bias"):
        return 0.0, 0.02
    if name.endswith("pos_emb"):
        return 0.0, 0.02
    if name == "text.wte":
        return 0.0, 0.5
    if name.endswith((".alpha", "_features")):
        return 0.0, 1.0
    if name.endswith(".router.weight"):
        return 0.0, 2 * fan_in**-0.5  # logits of deviation 2: experts differ clearly, none takes all
    return 0.0, fan_in**-0.5
