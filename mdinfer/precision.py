"""In what a model's experts are kept: the types behind the option, the choice where it leaves that open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from mdinfer.kernels.int4 import GROUP, INT4
from mdinfer.kernels.int8 import INT8
from mdinfer.memory import format_bytes

Experts = Literal["bf16", "fp8", "int8", "int4"]
SMALLER: Mapping[str, tuple[Experts, ...]] = {"cuda": ("bf16", "fp8", "int4"), "cpu": ("bf16", "int8", "int4")}
"""By the kind of device: what it takes by itself, the first that fits. A CPU has no use for fp8, which is slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """why: for people, where it is not the checkpoint's own precision; else empty."""

    experts: Experts
    why: str = ""


def expert_dtype(experts: Experts, dtype: torch.dtype) -> torch.dtype:
    """The type of the tensors, in a model of `dtype`."""
    return {"bf16": dtype, "fp8": torch.float8_e4m3fn, "int8": INT8, "int4": INT4}[experts]


def chosen_experts(own: Experts, needed: Mapping[Experts, int], free: int) -> Choice:
    """The checkpoint's own precision if it fits, else the next smaller one that does, or the smallest.

    needed: bytes of the weights in each precision, from the largest on, and of what has to stand beside them.
    """
    order = list(needed)[list(needed).index(own) :]
    experts = next((each for each in order if needed[each] <= free), order[-1])
    if experts == own:
        return Choice(experts=own)
    too_large = ", ".join(f"{each} {format_bytes(needed[each])}" for each in order if needed[each] > free)
    return Choice(experts=experts, why=f"of {format_bytes(free)} free, with a least of cache, would take: {too_large}")


def described(weight: torch.dtype) -> str:
    """Of quantised experts, by the type of their tensors."""
    return f"int4 in groups of {GROUP}" if weight == INT4 else str(weight).removeprefix("torch.")
