"""Kernels that only tests need: device functions, each behind the least of a kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from mdinfer.kernels._triton.float8 import e4m3_to_float, float_to_e4m3
from mdinfer.kernels._triton.nucleus import uniform_number


@triton.jit
def decode_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, e4m3_to_float(tl.load(x_ptr + at), NATIVE=False))


@triton.jit
def encode_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, float_to_e4m3(tl.load(x_ptr + at), NATIVE=False))


@triton.jit
def uniform_kernel(seeds_ptr, steps_ptr, out_ptr):
    row = tl.program_id(0)
    tl.store(out_ptr + row, uniform_number(tl.load(seeds_ptr + row), tl.load(steps_ptr + row)))
