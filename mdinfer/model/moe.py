"""A mixture-of-experts layer: router and experts, in the model's dtype, in fp8, int8 or int4."""

from __future__ import annotations

import torch
from torch import nn

from mdinfer.config import MoEConfig
from mdinfer.kernels import ExpertWeights, moe_experts, moe_route
from mdinfer.kernels.int4 import INT4, can_lay_out, lay_out, packed_shape, scale_shape
from mdinfer.kernels.int8 import INT8
from mdinfer.model.layers import Linear, empty


class ExpertWeight(nn.Module):
    """weight (E, outputs, inputs); scale (E, outputs), float32 where the weight is fp8, bfloat16 where int8, else None.

    In int4 both are those of `mdinfer.kernels.int4`.
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
        self._laid_out = False
        self._sizes = ((2 * inner, dim), (dim, inner))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        fc1, fc2 = self.fc1, self.fc2
        experts = ExpertWeights(
            fc1=fc1.weight, fc2=fc2.weight, fc1_scale=fc1.scale, fc2_scale=fc2.scale, laid_out=self._laid_out
        )
        return moe_experts(h, moe_route(self.router(h), self.experts_per_token), experts)

    def lay_out(self) -> None:
        """Once, when weights are there: put int4 into what a CPU multiplies best, if it has that for these sizes."""
        weight, dtype = self.fc1.weight, self.router.weight.dtype
        if weight.dtype != INT4 or not weight.is_cpu or not all(can_lay_out(N, K, dtype) for N, K in self._sizes):
            return
        assert not self._laid_out
        for kept in (self.fc1, self.fc2):
            assert kept.scale is not None
            for bits, scale in zip(kept.weight, kept.scale, strict=True):
                lay_out(bits, scale)
        self._laid_out = True
