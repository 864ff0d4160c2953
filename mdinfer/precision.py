"""In what a model's experts and linears are kept: the types behind the options, the choice where they leave it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mdinfer.kernels.int4 import GROUP, INT4
from mdinfer.kernels.int8 import INT8
from mdinfer.memory import format_bytes

Experts = Literal["bf16", "fp8", "int8", "int4"]
Linears = Literal["bf16", "fp8"]
Kept = tuple[Experts, Linears]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """why: for people, where it is not the checkpoint's own precision; else empty."""

    experts: Experts
    linears: Linears = "bf16"
    why: str = ""


def expert_dtype(experts: Experts, dtype: torch.dtype) -> torch.dtype:
    """The type of the experts' tensors, in a model of `dtype`."""
    return {"bf16": dtype, "fp8": torch.float8_e4m3fn, "int8": INT8, "int4": INT4}[experts]


def linear_dtype(linears: Linears, dtype: torch.dtype) -> torch.dtype:
    """The type of the weights of the linears that are quantised, in a model of `dtype`."""
    return {"bf16": dtype, "fp8": torch.float8_e4m3fn}[linears]


def smaller_experts(own: Experts, *, on_cpu: bool) -> tuple[Experts, ...]:
    """The checkpoint's own precision and those that take less. A CPU has no use for fp8, which is slower than int8."""
    order: tuple[Experts, ...] = ("bf16", "int8", "int4") if on_cpu else ("bf16", "fp8", "int4")
    return order[order.index(own) :]


def candidates(experts: Sequence[Experts], linears: Linears | None, *, fp8: bool) -> list[Kept]:
    """What may be chosen, dearest first, of what experts may be. linears None: the option leaves them open. `fp8`:
    whether they may be fp8 then.

    Experts are 87% of the weights, and only their weights are rounded: they go to fp8 before linears do, which are a
    tenth and round the rows they take, too. Linears in turn go to fp8 before experts go to int4, which errs four times
    as much.
    """
    rates: tuple[Linears, ...] = (linears,) if linears is not None else ("bf16", "fp8") if fp8 else ("bf16",)
    early = len(experts) > 1 and linears is None
    return [(e, rate) for e in experts for rate in rates if not (early and e == "bf16" and rate == "fp8")]


def chosen(order: Sequence[Kept], needed: Mapping[Kept, int], free: int) -> Choice:
    """The first that fits, or the last.

    needed: bytes of the weights in each and of what has to stand beside them.
    """
    experts, linears = next((each for each in order if needed[each] <= free), order[-1])
    if (experts, linears) == order[0]:
        return Choice(experts=experts, linears=linears)
    too_large = ", ".join(f"{named(each)} {format_bytes(needed[each])}" for each in order if needed[each] > free)
    return Choice(
        experts=experts,
        linears=linears,
        why=f"of {format_bytes(free)} free, with a least of cache, would take: {too_large}",
    )


def named(kept: Kept) -> str:
    """For people: linears are told where they are not as they are."""
    experts, linears = kept
    return experts if linears == "bf16" else f"{experts} with linears {linears}"


def described(weight: torch.Tensor) -> str:
    """Of quantised weights, by the type of their tensors; of those that have no numbers, see `Moondream.lay_out`."""
    kind = f"int4 in groups of {GROUP}" if weight.dtype == INT4 else str(weight.dtype).removeprefix("torch.")
    return f"{kind} held as bfloat16" if weight.is_meta else kind
