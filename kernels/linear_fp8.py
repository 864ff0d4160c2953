"""The dense product with e4m3 weights: y = x W^T + b,  W[n, k] = scale[n] * q[n, k].

Up to FEW_ROWS rows, x stays as it is and the weights are multiplied out in registers: there a product waits for their
bytes, and nothing but they is rounded. More rows are bound by arithmetic and are rounded to e4m3 too, with a scale
each (`quantise_rows`):

    y[t, n] = x_scale[t] * scale[n] * sum over k of x_q[t, k] q[n, k] + b[n]

Sums are float32, and y is rounded once. On CUDA that product is the vendor library's, `torch._scaled_mm` with scales
of rows and columns, for compute capability 8.9 and later. It asks for K and N in multiples of 16 and gives bfloat16.

Hopper adds up fp8 products in registers that keep 13 bits behind the point. "Fast accumulation" leaves them there for
the whole sum: of each 32 terms' sum up to 2^-13 of the total is cut off, on average half of that of a total that is on
average half grown, K / 32 * 2^-15 in all: 0.2% at K = 2048, 0.8% at 8192. Operands in e4m3 err by 3.7%. Slow
accumulation, float32 after every 128 terms, costs up to half of the speed; it is taken beyond FAST_TERMS.
"""

from __future__ import annotations

import torch

from mdinfer.kernels import dispatch
from mdinfer.kernels.linear import linear
from mdinfer.kernels.quantise import FEW_ROWS, Float8Rows, quantise_rows, quantise_rows_torch

FP8 = torch.float8_e4m3fn
CAPABILITY = (8, 9)
"""The least compute capability of a GPU that multiplies e4m3."""

FAST_TERMS = 4608
_STEP = 16


def fits_fp8(outputs: int, inputs: int) -> bool:
    """Whether the library takes a weight of this shape."""
    return outputs % _STEP == 0 and inputs % _STEP == 0


def linear_fp8(
    x: torch.Tensor | Float8Rows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(..., N) in x's dtype, of x (..., K), weight (N, K) float8_e4m3fn, scale (N,) float32, bias (N,) or None.

    N and K are multiples of 16; on CUDA, x is bfloat16 where it has more than FEW_ROWS rows. No value is read back
    and no shape depends on one, so that it may be recorded in a CUDA graph.
    """
    N, K = weight.shape
    assert x.shape[-1] == K and scale.shape == (N,) and fits_fp8(N, K), (x.shape, weight.shape, scale.shape)
    assert weight.dtype == FP8 and scale.dtype == torch.float32, (weight.dtype, scale.dtype)
    assert bias is None or bias.shape == (N,)
    if isinstance(x, Float8Rows):
        return scaled_product(x.q, x.scale, weight, scale, bias, x.dtype).view(*x.shape[:-1], N)
    if not dispatch.compiled(x):
        return linear_fp8_torch(x, weight, scale, bias)
    rows = x.reshape(-1, K)
    if len(rows) <= FEW_ROWS:
        from mdinfer.kernels._triton import linear_fp8 as compiled

        y = compiled.few_rows(rows, weight, scale, bias)
    else:
        y = scaled_product(*quantise_rows(rows), weight, scale, bias, x.dtype)
    return y.view(*x.shape[:-1], N)


def linear_fp8_torch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The torch body of `linear_fp8`."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > FEW_ROWS:
        q, row_scale = quantise_rows_torch(rows)
        y = _multiplied_out(q.to(x.dtype), row_scale, weight, scale, bias)
    else:
        y = _multiplied_out(rows, None, weight, scale, bias)
    return y.view(*x.shape[:-1], len(weight))


def scaled_product(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(T, N) in `dtype` of rows q (T, K) in e4m3 with scales (T,), by the library where that has fp8 products."""
    if not (q.is_cuda or q.is_meta):
        return _multiplied_out(q.to(dtype), q_scale, weight, scale, bias)
    assert dtype == torch.bfloat16, f"{dtype}: scales of rows and columns go with bfloat16"
    y: torch.Tensor = torch._scaled_mm(
        q,
        weight.t(),
        scale_a=q_scale[:, None],
        scale_b=scale[None, :],
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=q.shape[1] <= FAST_TERMS,
    )
    return y


def _multiplied_out(
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """e4m3 values are exact in any dtype of `rows`; scales and bias are met in float32."""
    y = linear(rows, weight.to(rows.dtype)).float() * scale
    if row_scale is not None:
        y = y * row_scale[:, None]
    return (y if bias is None else y + bias.float()).to(rows.dtype)
