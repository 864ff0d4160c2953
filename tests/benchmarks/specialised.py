"""`benchmarks.variants` with a kernel specialised on its number of rows: 1, a multiple of 16, or another."""

from __future__ import annotations

import sys

import triton

from benchmarks.variants import main
from mdinfer.kernels._triton import norm

if __name__ == "__main__":
    norm.layer_norm_kernel = triton.jit(norm.layer_norm_kernel.fn)
    sys.exit(main([]))
