"""Epilogues of dense products: alone, and with the product, whose library has an epilogue of its own for GELU.

Rows are 729 for each crop or picture, or tokens of the decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer.kernels import epilogue as contract
from mdinfer.kernels._triton import epilogue

_WHY = "results are rounded to bfloat16, by 0.29 * 2^-8 of their size on average"
_WHY_PRODUCT = "the product is rounded to bfloat16 before the epilogue, the result after it"
_LARGE = 1 << 22  # elements; below, a call is bound by its start


def cases() -> list[Case]:
    return [
        *(_bias_gelu(rows, 4304) for rows in (2 * 729, 9 * 729, 64 * 729)),
        *(_bias_gelu(rows, 8192) for rows in (1, 16, 729, 775)),
        *(_bias_residual(crops, 1152, shared=False) for crops in (2, 9, 64)),
        _bias_residual(9, 1152, shared=True),
        _linear_gelu(9 * 729, 1152, 4304),
        _linear_gelu(729, 2304, 8192),
        *(_linear_gelu(rows, 2048, 8192) for rows in (1, 16, 775)),
        _linear_residual(9 * 729, 1152, 1152),
        _linear_residual(9 * 729, 4304, 1152),
    ]


def _bias_gelu(rows: int, width: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return (randn(rows, width, device=device), randn(width, device=device))

    return Case(
        op="bias_gelu",
        shape=f"{rows}x{width}-bf16",
        inputs=inputs,
        run=lambda x, bias: epilogue.bias_gelu(x, bias, True),
        twin=lambda x, bias: contract.bias_gelu_torch(x.float(), bias.float()),
        bound=4e-3,
        why=_WHY,
        rivals={"eager": lambda x, bias: F.gelu(x + bias, approximate="tanh")},
        bytes=2 * 2 * rows * width,
        bar=("bytes", 0.8) if rows * width > _LARGE else None,
    )


def _bias_residual(crops: int, width: int, *, shared: bool) -> Case:
    """With `shared`, one residual for all crops: the position embedding."""
    rows = crops * 729

    def inputs(device: torch.device) -> Inputs:
        residual = randn(1 if shared else crops, 729, width, device=device)
        return (randn(crops, 729, width, device=device), randn(width, device=device), residual)

    return Case(
        op="bias_residual",
        shape=f"{rows}x{width}{'-shared' if shared else ''}-bf16",
        inputs=inputs,
        run=lambda x, bias, residual: epilogue.bias_residual(x, bias, residual, True),
        twin=lambda *tensors: contract.bias_residual_torch(*(t.float() for t in tensors)),
        bound=4e-3,
        why=_WHY,
        rivals={"eager": lambda x, bias, residual: x + bias + residual},
        bytes=2 * (2 * rows + (729 if shared else rows)) * width,
        bar=("bytes", 0.8) if rows * width > _LARGE else None,
    )


def _product_inputs(rows: int, inner: int, width: int, device: torch.device) -> Inputs:
    weight = randn(width, inner, device=device, scale=inner**-0.5)
    return (randn(rows, inner, device=device), weight, randn(width, device=device))


def _linear_gelu(rows: int, inner: int, width: int) -> Case:
    return Case(
        op="linear_gelu",
        shape=f"{rows}x{inner}x{width}-bf16",
        inputs=lambda device: _product_inputs(rows, inner, width, device),
        run=lambda x, weight, bias: epilogue.bias_gelu(F.linear(x, weight), bias, True),
        twin=lambda x, w, b: F.gelu(F.linear(x.float(), w.float(), b.float()), approximate="tanh"),
        bound=8e-3,
        why=_WHY_PRODUCT,
        rivals={
            "in the product": lambda x, w, b: torch._addmm_activation(b, x, w.t(), use_gelu=True),
            "eager": lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
        },
        bytes=2 * (rows * inner + inner * width + rows * width),
        flops=2 * rows * inner * width,
    )


def _linear_residual(rows: int, inner: int, width: int) -> Case:
    def inputs(device: torch.device) -> Inputs:
        return (*_product_inputs(rows, inner, width, device), randn(rows, width, device=device))

    return Case(
        op="linear_residual",
        shape=f"{rows}x{inner}x{width}-bf16",
        inputs=inputs,
        run=lambda x, weight, bias, residual: epilogue.bias_residual(F.linear(x, weight), bias, residual, True),
        twin=lambda x, w, b, residual: F.linear(x.float(), w.float(), b.float()) + residual.float(),
        bound=8e-3,
        why=_WHY_PRODUCT,
        rivals={
            "eager": lambda x, w, b, residual: residual + F.linear(x, w, b),
            "addmm into the residual (no bias)": lambda x, w, b, residual: residual.addmm_(x, w.t()),
        },
        bytes=2 * (rows * inner + inner * width + 2 * rows * width),
        flops=2 * rows * inner * width,
    )
