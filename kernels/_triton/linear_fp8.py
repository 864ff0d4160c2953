"""Few rows times e4m3 weights: each weight is read once, made a number in registers, and met by all rows at once.

As of the experts, weights (N, K) are the first operand and rows (K, T) the second: the matrix unit takes 16 weights
and 8 rows at the least, and of two operands only the first can come out of registers, where weights are converted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.float8 import bits, e4m3_to_float
from mdinfer.kernels._triton.launch import Config, assert_dense, dot_type, launch, power_of_2, target_of

ROWS = 16

# Weight rows of a program by the outputs: N = 2048 makes 128 programs of 16, one a processor of an H100; N = 6144, 192
# of 32. 16 x 256 bytes are 4 KiB of weights a stage, 5 stages keep 16 KiB in flight on a processor, near the 18 KiB
# that cover 3 TB/s at 800 ns; activations, 8 KiB a stage, come from the cache. 48 KiB of shared memory, which the
# smallest chip has twice. Not measured.
CONFIGS = {
    4095: Config(blocks={"BLOCK_N": 16, "BLOCK_K": 256}, warps=4, stages=5),
    1 << 31: Config(blocks={"BLOCK_N": 32, "BLOCK_K": 256}, warps=4, stages=4),
}
# The interpreter pays by program.
INTERPRETER = Config(blocks={"BLOCK_N": 256, "BLOCK_K": 256})


@triton.jit(do_not_specialize=["T"])
def few_rows_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, T, N: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NATIVE: tl.constexpr, DOT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    weight_ptr += n.to(tl.int64)[:, None] * K + k[None, :]
    x_ptr += t.to(tl.int64)[None, :] * K + k[:, None]
    y = tl.zeros((BLOCK_N, ROWS), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            weights = tl.load(weight_ptr + start, mask=(n < N)[:, None], other=0)
            x = tl.load(x_ptr + start, mask=(t < T)[None, :], other=0.0)
        else:
            inside = start + k < K
            weights = tl.load(weight_ptr + start, mask=(n < N)[:, None] & inside[None, :], other=0)
            x = tl.load(x_ptr + start, mask=(t < T)[None, :] & inside[:, None], other=0.0)
        y = tl.dot(e4m3_to_float(weights, NATIVE).to(DOT), x.to(DOT), y, input_precision="ieee")
    y *= tl.load(scale_ptr + n, mask=n < N, other=0.0)[:, None]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    out = out_ptr + t.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=(t < T)[None, :] & (n < N)[:, None])


def few_rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(T, N) of x (T, K); any number of rows is right, weights are read again for every 16."""
    assert_dense(weight, scale, bias)
    x = x.contiguous()
    (T, K), N = x.shape, len(weight)
    target = target_of(x)
    config = next(config for most, config in CONFIGS.items() if N <= most) if target.capability else INTERPRETER
    blocks = {**config.blocks, "BLOCK_K": max(16, min(config.blocks["BLOCK_K"], power_of_2(K)))}
    out = torch.empty(T, N, dtype=x.dtype, device=x.device)
    launch(
        few_rows_kernel,
        (triton.cdiv(N, blocks["BLOCK_N"]), triton.cdiv(T, ROWS)),
        *(x, bits(weight), scale, bias, out, T),
        N=N,
        K=K,
        ROWS=ROWS,
        NATIVE=target.native_fp8,
        DOT=dot_type(x.dtype),
        config=Config(blocks=blocks, warps=config.warps, stages=config.stages),
    )
    return out
