"""Routing and experts at the sizes of the published model, and of tiny ones, for which other code is compiled."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Call, Case, Inputs, randn
from mdinfer.kernels import ExpertWeights, Routing
from mdinfer.kernels._triton import moe_grouped, moe_small, quantise
from mdinfer.kernels._triton.moe_route import moe_route
from mdinfer.kernels.int4 import INT4, packed_shape, scale_shape
from mdinfer.kernels.moe import Activations, grouped, moe_experts_torch, moe_route_torch
from mdinfer.kernels.quantise import quantise_rows_torch

_MODEL = (2048, 64, 8, 1024)  # D, E, A, I
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 4 / 128}  # of a weight
_TINY = ((128, 8, 2, 64), (256, 64, 8, 32))
_TOKENS = (1, 2, 4, 8, 16, 64, 128, 256, 775, 2048, 4096, 8192)  # 128 alone has tiles of 32 rows
_WHY = "the activation, each row and the result are rounded to bfloat16, by 0.29 * 2^-7 on average"
_WHY_INT4 = _WHY + "; for many tokens weights too"
_WHY_FP8 = "and one activation in 16 comes to lie near enough to a tie to be rounded to the next e4m3 value"


def cases() -> list[Case]:
    return [
        *(_route(T) for T in (1, 8, 64, 775, 4096, 8192)),
        *(_experts(T, kept) for kept in ("bf16", "fp8", "int4") for T in _TOKENS),
        *(_experts(T, "fp8", "fp8") for T in _TOKENS if T > 8),
        *(_experts(T, "fp32") for T in (1, 64)),
        *(_quantise(rows, width) for rows, width in ((4096, 2048), (8 * 4096, 1024))),
        *(_experts(T, kept, sizes=sizes) for kept in ("bf16", "int4") for sizes in _TINY for T in (1, 17, 745)),
        *(_experts(T, "fp8", "fp8", sizes) for sizes in _TINY for T in (17, 745)),
    ]


def _route(T: int) -> Case:
    _, E, A, _ = _MODEL

    def twin(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routing = moe_route_torch(logits, A)
        return routing.experts, routing.weights

    def eager(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, experts = torch.topk(logits, A)
        return experts, torch.softmax(values.float(), dim=-1)

    return Case(
        op="moe_route",
        shape=f"{T}x{E}-top{A}-bf16",
        inputs=lambda device: (randn(T, E, device=device),),
        run=lambda logits: moe_route(logits, A, None)[:2],
        twin=twin,
        bound=1e-6,
        why="experts are the same, ties too; weights are float32",
        rivals={"torch.topk+softmax (ties by chance, no counts)": eager},
        bytes=T * (2 * E + 8 * A),
    )


def _experts(T: int, kept: str, activations: Activations = "plain", sizes: tuple[int, int, int, int] = _MODEL) -> Case:
    D, E, A, inner = sizes
    many, dtype = grouped(T, A, E), torch.float32 if kept == "fp32" else torch.bfloat16

    def inputs(device: torch.device) -> Inputs:
        experts, weights, counts = moe_route(randn(T, E, device=device), A, None)
        routing = Routing(experts=experts, weights=weights, counts=counts)
        return randn(T, D, device=device, dtype=dtype), routing, _weights(sizes, kept, device)

    def run(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> torch.Tensor:
        if many:
            return moe_grouped.moe_experts(x, routing, weights, activations)
        return moe_small.moe_experts(x, routing, weights)

    def twin(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> torch.Tensor:
        if kept == "bf16":
            weights = ExpertWeights(fc1=weights.fc1.float(), fc2=weights.fc2.float())
        return moe_experts_torch(x.float(), routing, weights, activations)

    bound, why = 6e-3, _WHY
    if kept == "fp32":
        bound, why = 1e-5, "sums of 2048 and 1024 products in float32, each rounded by 2^-24"
    elif activations == "fp8":
        bound, why = 3e-2, _WHY_FP8
    elif kept == "int4":
        why = _WHY_INT4
    touched, weight_bytes = E * (1 - (1 - A / E) ** T), 3 * D * inner * _BYTES[kept]
    dtypes = kept if kept in ("fp32", "bf16") else f"{kept}x{'fp8' if activations == 'fp8' else 'bf16'}"
    full_size = sizes == _MODEL
    bar = None
    if full_size and kept != "fp32":
        bar = ("bytes", 0.75) if not many else ("flops", 0.6) if T >= 4096 else None
    return Case(
        op="moe_experts",
        shape=f"{T}x{D}-{E}x{inner}-top{A}-{dtypes}",
        inputs=inputs,
        run=run,
        twin=twin,
        bound=bound,
        why=why,
        rivals=_rivals(kept, many) if full_size else {},
        bytes=round(touched * weight_bytes) + 2 * dtype.itemsize * T * D,
        flops=2 * 3 * T * A * D * inner,
        bar=bar,
    )


def _weights(sizes: tuple[int, int, int, int], kept: str, device: torch.device) -> ExpertWeights:
    D, E, _, inner = sizes
    if kept == "int4":
        (fc1, scale1), (fc2, scale2) = _int4(E, 2 * inner, D, device=device), _int4(E, D, inner, device=device)
        return ExpertWeights(fc1=fc1, fc2=fc2, fc1_scale=scale1, fc2_scale=scale2)
    if kept in ("fp32", "bf16"):
        dtype = torch.float32 if kept == "fp32" else torch.bfloat16
        fc1 = randn(E, 2 * inner, D, device=device, dtype=dtype, scale=D**-0.5)
        return ExpertWeights(fc1=fc1, fc2=randn(E, D, inner, device=device, dtype=dtype, scale=inner**-0.5))
    scales = (
        torch.full(shape, fan_in**-0.5, device=device) for shape, fan_in in (((E, 2 * inner), D), ((E, D), inner))
    )
    fc1_scale, fc2_scale = scales
    return ExpertWeights(
        fc1=randn(E, 2 * inner, D, device=device, dtype=torch.float8_e4m3fn),
        fc2=randn(E, D, inner, device=device, dtype=torch.float8_e4m3fn),
        fc1_scale=fc1_scale,
        fc2_scale=fc2_scale,
    )


def _int4(*shape: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Any bits; steps near those of normal numbers whose products have the size of what they multiply."""
    size = packed_shape(*shape)
    if device.type == "meta":
        bits = torch.empty(size, dtype=INT4, device=device)
    else:
        bits = torch.randint(0, 256, size, dtype=INT4, device=device)
    step = 0.2 * shape[-1] ** -0.5 * (1 + 0.1 * randn(*scale_shape(*shape)[:-1], device=device).float())
    return bits, torch.stack((step, -7.5 * step), dim=-1).bfloat16()


def _rivals(kept: str, many: bool) -> dict[str, Call]:
    rivals: dict[str, Call] = {"torch.mm by expert": moe_experts_torch}
    if many and kept == "bf16":
        rivals["torch._grouped_mm"] = _grouped_mm
    return rivals


def _grouped_mm(x: torch.Tensor, routing: Routing, weights: ExpertWeights) -> torch.Tensor:
    T, A = routing.experts.shape
    chosen, order = torch.sort(routing.experts.flatten(), stable=True)
    ends = torch.searchsorted(chosen, torch.arange(len(weights.fc1), device=x.device), right=True).int()
    u, g = torch._grouped_mm(x[order // A], weights.fc1.mT, offs=ends).chunk(2, dim=-1)
    y = torch._grouped_mm(F.gelu(u) * (g + 1), weights.fc2.mT, offs=ends)
    rows = torch.empty_like(y).index_copy_(0, order, y).view(T, A, -1)
    return torch.bmm(routing.weights[:, None].to(x.dtype), rows)[:, 0]


def _quantise(rows: int, width: int) -> Case:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scale = quantise.quantise_rows(x)
        return values.float(), scale

    def twin(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scale = quantise_rows_torch(x)
        return values.float(), scale

    return Case(
        op="quantise_rows",
        shape=f"{rows}x{width}-bf16",
        inputs=lambda device: (randn(rows, width, device=device),),
        run=run,
        twin=twin,
        bound=1e-6,
        why="the same values",
        rivals={"eager": quantise_rows_torch},
        bytes=3 * rows * width,
    )
