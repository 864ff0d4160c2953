"""A mixture-of-experts layer: router and experts, in the model's dtype, in fp8, int8 or int4."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mdinfer.config import MoEConfig
from mdinfer.kernels import ExpertWeights, moe_experts, moe_route
from mdinfer.kernels.float8 import float8_values
from mdinfer.kernels.int4 import INT4, can_lay_out, lay_out, packed_shape, scale_shape
from mdinfer.kernels.int8 import INT8
from mdinfer.kernels.linear_fp8 import FP8
from mdinfer.kernels.packed import can_pack, pack
from mdinfer.model.layers import Linear, empty, free


class ExpertWeight(nn.Module):
    """weight (E, outputs, inputs); scale (E, outputs), float32 where the weight is fp8, bfloat16 where int8, else None.

    In int4 both are those of `mdinfer.kernels.int4`. After `Moondream.lay_out` the experts may be in `packed`, each as
    of `mdinfer.kernels.packed`, or `laid_out` as int4 is for a CPU.
    """

    def __init__(
        self, experts: int, inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        shape = (experts, outputs, inputs)
        self.weight = empty(*(packed_shape(*shape) if dtype == INT4 else shape), dtype=dtype, device=device)
        self.scale: nn.Parameter | None = None
        if dtype == INT4:
            self.scale = empty(*scale_shape(*shape), dtype=torch.bfloat16, device=device)
        elif dtype.itemsize == 1:
            kind = torch.bfloat16 if dtype == INT8 else torch.float32
            self.scale = empty(experts, outputs, dtype=kind, device=device)
        self.packed: list[torch.Tensor] = []
        self.laid_out = False

    def pack(self) -> None:
        """Each expert's numbers, as bfloat16, by themselves; the weight has a shape and a type then, and no numbers."""
        self.packed = [pack(numbers) for numbers in self._numbers()]
        shape = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)
        free(self.weight)
        self.weight = shape

    def lay_out_int4(self) -> None:
        assert self.scale is not None and not self.laid_out
        for bits, scale in zip(self.weight, self.scale, strict=True):
            lay_out(bits, scale)
        self.laid_out = True

    def _numbers(self) -> Iterable[torch.Tensor]:
        if self.scale is None:
            return self.weight
        pairs = zip(self.weight, self.scale, strict=True)
        return (float8_values(weight).mul_(scale[:, None]).bfloat16() for weight, scale in pairs)


class ExpertMlp(nn.Module):
    def __init__(
        self,
        dim: int,
        config: MoEConfig,
        *,
        dtype: torch.dtype,
        expert_dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        inner, count = config.expert_inner_dim, config.num_experts
        self.router = Linear(dim, count, dtype=dtype, device=device)
        self.fc1 = ExpertWeight(count, dim, 2 * inner, dtype=expert_dtype, device=device)
        self.fc2 = ExpertWeight(count, inner, dim, dtype=expert_dtype, device=device)
        self._sizes = ((2 * inner, dim), (dim, inner))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        fc1, fc2 = self.fc1, self.fc2
        experts = ExpertWeights(
            fc1=fc1.weight,
            fc2=fc2.weight,
            fc1_scale=fc1.scale,
            fc2_scale=fc2.scale,
            laid_out=fc1.laid_out,
            packed=(fc1.packed, fc2.packed) if fc1.packed else None,
        )
        return moe_experts(h, moe_route(self.router(h), self.experts_per_token), experts)

    def lay_out(self, part: ExpertWeight, *, widen: bool) -> None:
        """Of `Moondream.lay_out`; part: fc1 or fc2."""
        weight, dtype = part.weight, self.router.weight.dtype
        if weight.dtype == INT4:
            if weight.is_cpu and all(can_lay_out(N, K, dtype) for N, K in self._sizes):
                part.lay_out_int4()
        elif can_pack(weight.device, dtype) and (weight.dtype == dtype or (weight.dtype == FP8 and widen)):
            part.pack()
