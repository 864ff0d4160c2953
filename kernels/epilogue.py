"""Dense products and what follows them in one pass: bias and GELU, or bias and residual.

bias_gelu:        y = gelu_tanh(x + b)                 linear_gelu:      the same of x W^T
bias_residual:    y = x + b + r                        linear_residual:  the same of x W^T

linear_gelu_rows: the same of e4m3 weights for another such product, for which many rows are rounded to e4m3

Sums and GELU are made in float32 and rounded once. r has x's shape or lacks leading dimensions of it, over which its
rows repeat. On CUDA the product, without its bias, is the vendor library's and is overwritten by the epilogue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch
from mdinfer.kernels.linear import linear
from mdinfer.kernels.linear_fp8 import linear_fp8
from mdinfer.kernels.quantise import FEW_ROWS, Float8Rows, quantise_rows_torch

# Whether bias and GELU go into the product's own epilogue (cuBLASLt) instead of a pass of their own. Not measured:
# `benchmarks/kernels/epilogue.py` has both as rivals.
GELU_IN_PRODUCT = False


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """gelu_tanh(x + bias): x (..., D), bias (D,); with `overwrite` the result may take x's place."""
    assert x.shape[-1:] == bias.shape, (x.shape, bias.shape)
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import epilogue

        return epilogue.bias_gelu(x, bias, overwrite)
    return bias_gelu_torch(x, bias)


def bias_gelu_torch(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The torch body of `bias_gelu`."""
    return F.gelu(x.float() + bias.float(), approximate="tanh").to(x.dtype)


def bias_residual(
    x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, *, overwrite: bool = False
) -> torch.Tensor:
    """x + bias + residual: x (..., D), bias (D,), residual (..., D); with `overwrite` as in `bias_gelu`."""
    assert x.shape[-1:] == bias.shape and _repeats(residual, x), (x.shape, bias.shape, residual.shape)
    if dispatch.compiled(x):
        from mdinfer.kernels._triton import epilogue

        return epilogue.bias_residual(x, bias, residual, overwrite)
    return bias_residual_torch(x, bias, residual)


def bias_residual_torch(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The torch body of `bias_residual`."""
    return (x.float() + bias.float() + residual.float()).to(x.dtype)


def linear_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """gelu_tanh(x W^T + bias): x (..., inputs), weight (outputs, inputs), bias (outputs,); with `scale` (outputs,),
    weight is e4m3 as of `linear_fp8`.
    """
    if not dispatch.compiled(x):
        return F.gelu(_product(x, weight, scale, bias), approximate="tanh")
    if GELU_IN_PRODUCT and x.is_cuda and scale is None:  # on a CPU that operation's GELU is erf
        y: torch.Tensor = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
        return y.view(*x.shape[:-1], -1)
    return bias_gelu(_product(x, weight, scale), bias, overwrite=True)


def linear_gelu_rows(
    x: torch.Tensor | Float8Rows, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor | Float8Rows:
    """`linear_gelu` with `scale`, in e4m3 where it has more than FEW_ROWS rows, whose largest are of the whole row."""
    if x.shape[:-1].numel() <= FEW_ROWS:
        assert isinstance(x, torch.Tensor)
        return linear_gelu(x, weight, bias, scale)
    y = linear_fp8(x, weight, scale)
    rows = y.view(-1, y.shape[-1])
    if dispatch.compiled(y):
        from mdinfer.kernels._triton import quantise

        q, q_scale = quantise.bias_gelu_rows(rows, bias)
    else:
        q, q_scale = bias_gelu_rows_torch(rows, bias)
    return Float8Rows(q=q, scale=q_scale, shape=y.shape, dtype=y.dtype)


def bias_gelu_rows_torch(x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows` of gelu_tanh(x + bias), x (R, D), all in float32."""
    return quantise_rows_torch(F.gelu(x.float() + bias.float(), approximate="tanh"))


def linear_residual(
    x: torch.Tensor | Float8Rows,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + bias + residual; the residual's rows as in `bias_residual`, weight and `scale` as in `linear_gelu`."""
    if dispatch.compiled(residual):
        return bias_residual(_product(x, weight, scale), bias, residual, overwrite=True)
    y = _product(x, weight, scale, bias)
    assert _repeats(residual, y), (y.shape, residual.shape)
    return residual + y


def _product(
    x: torch.Tensor | Float8Rows, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if scale is not None:
        return linear_fp8(x, weight, scale, bias)
    assert isinstance(x, torch.Tensor), "rows in e4m3 go with weights in e4m3"
    return linear(x, weight, bias)


def _repeats(residual: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the residual's rows, in their order, repeat to be those of x."""
    shape = residual.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return x.shape[-len(shape) :] == shape and x.dtype == residual.dtype
