"""Products with e4m3 weights at the shapes of the published model, and what rounds rows on the way to them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Call, Case, Inputs, randn
from mdinfer.kernels import epilogue
from mdinfer.kernels import norm as norm_contract
from mdinfer.kernels._triton import linear_fp8 as compiled
from mdinfer.kernels._triton import norm, quantise
from mdinfer.kernels.linear_fp8 import linear_fp8_torch, scaled_product
from mdinfer.kernels.quantise import FEW_ROWS, quantise_rows_torch

_DECODER = ((2048, 6144), (2048, 2048), (2048, 8192), (8192, 2048))  # inputs, outputs
_TOWER = ((1152, 3456), (1152, 1152), (1152, 4304), (4304, 1152))
_WHY_FEW = "the result is rounded to bfloat16, by 0.29 * 2^-7 on average; weights are exact in it"
_WHY_MANY = "as of few rows, and up to 0.8% of a sum are cut off where a chip adds up fp8 products in few bits"
_WHY_ROWS = "values near a tie may be rounded the other way, by a whole step of 2^-3: one in a thousand or two"


def cases() -> list[Case]:
    return [
        *(_product(rows, *shape) for rows in (1, 4, 16) for shape in _DECODER),
        _product(1, 2048, 8192, biased=False),  # its bias comes with the GELU
        *(_product(rows, *shape) for rows in (64, 775, 6200) for shape in _DECODER),
        *(_product(9 * 729, *shape) for shape in _TOWER),
        *(_product(729, *shape) for shape in ((2304, 8192), (8192, 2048))),
        *(_layer_norm_rows(crops * 729) for crops in (2, 9)),
        *(_bias_gelu_rows(*shape) for shape in ((2 * 729, 4304), (9 * 729, 4304), (775, 8192))),
    ]


def _product(rows: int, inputs: int, outputs: int, *, biased: bool = True) -> Case:
    few = rows <= FEW_ROWS

    def make(device: torch.device) -> Inputs:
        weight = randn(outputs, inputs, device=device, dtype=torch.float8_e4m3fn)
        scale = torch.full((outputs,), inputs**-0.5, device=device)
        rival = torch.empty(outputs, inputs, device=device, dtype=torch.bfloat16).copy_(weight)
        x, bias = randn(rows, inputs, device=device), randn(outputs, device=device) if biased else None
        return x, weight, scale, bias, rival, quantise_rows_torch(x)

    def run(
        x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, *_: Any
    ) -> torch.Tensor:
        if few:
            return compiled.few_rows(x, weight, scale, bias)
        q, q_scale = quantise.quantise_rows(x)
        return scaled_product(q, q_scale, weight, scale, bias, x.dtype)

    rivals: dict[str, Call] = {
        "torch.linear in bf16": lambda x, w, s, b, rival, _: F.linear(x, rival, b),
        "torch._scaled_mm (of rows in e4m3)": lambda x, w, s, b, _, q: scaled_product(q[0], q[1], w, s, b, x.dtype),
    }
    return Case(
        op="linear_fp8",
        shape=f"{rows}x{inputs}x{outputs}-bf16" + ("" if biased else "-unbiased"),
        inputs=make,
        run=run,
        twin=lambda x, w, s, b, *_: linear_fp8_torch(x.float(), w, s, b.float() if biased else None),
        bound=4e-3 if few else 1.2e-2,
        why=_WHY_FEW if few else _WHY_MANY,
        rivals=rivals,
        bytes=inputs * outputs + 4 * outputs + 2 * rows * (inputs + outputs),
        flops=2 * rows * inputs * outputs,
        bar=("bytes", 0.6) if few and inputs * outputs > 1 << 23 else None,
    )


def _layer_norm_rows(rows: int) -> Case:
    width = 1152

    def inputs(device: torch.device) -> Inputs:
        return tuple(randn(*shape, device=device) for shape in ((rows, width), (width,), (width,)))

    return _rounding(
        op="layer_norm_rows",
        rows=rows,
        width=width,
        inputs=inputs,
        run=lambda x, w, b: norm.layer_norm_rows(x, w, b, 1e-5),
        twin=norm_contract.layer_norm_rows_torch,
    )


def _bias_gelu_rows(rows: int, width: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return randn(rows, width, device=device), randn(width, device=device)

    return _rounding(
        op="bias_gelu_rows",
        rows=rows,
        width=width,
        inputs=inputs,
        run=quantise.bias_gelu_rows,
        twin=epilogue.bias_gelu_rows_torch,
    )


def _rounding(*, op: str, rows: int, width: int, inputs: Call, run: Call, twin: Call) -> Case:
    def values(result: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        q, scale = result
        return q.float() * scale[:, None], scale

    return Case(
        op=op,
        shape=f"{rows}x{width}-bf16",
        inputs=inputs,
        run=lambda *tensors: values(run(*tensors)),
        twin=lambda *tensors: values(twin(*tensors)),
        bound=6e-3,
        why=_WHY_ROWS,
        rivals={"eager": twin},
        bytes=3 * rows * width,
        bar=("bytes", 0.7) if rows * width > 1 << 22 else None,
    )
