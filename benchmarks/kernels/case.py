"""A kernel at one of the model's shapes: how to call it, what it must give, what else does the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Inputs = tuple[Any, ...]
Call = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of one operation.

    op       the operation, and `shape` what tells this case from its others: ("layer_norm", "775x2048-bf16")
    inputs   makes the arguments on a device; on "meta", which has no values, nothing may depend on one
    run      the compiled body; its results are a tensor or a tuple of tensors, those that it writes into included
    twin     the same results from the same arguments, computed in float32 or float64
    seen     makes of `run`'s results and its arguments what the twin gives, where they are not the same
    bound    the relative RMS error allowed between the two, with `why`; of whole numbers, the share that may differ
    rivals   library operations that do the same work (or, said in the name, less of it)
    bytes    that have to move, once each way, and `flops` that have to be done
    bar      what to reach on an H100: a share of the chip's copy bandwidth ("bytes"), of its bfloat16 matmul rate
             ("flops"), or of the speed of the fastest of the rivals whose names begin so
    """

    op: str
    shape: str
    inputs: Callable[[torch.device], Inputs]
    run: Call
    twin: Call
    bound: float
    why: str
    seen: Call | None = None
    rivals: dict[str, Call] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
    bar: tuple[str, float] | None = None

    @property
    def name(self) -> str:
        return f"{self.op}[{self.shape}]"


def randn(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, a fresh draw each call; unset on meta."""
    if device.type == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    return torch.randn(shape, device=device).mul_(scale).to(dtype)
