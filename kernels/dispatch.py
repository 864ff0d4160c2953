"""Which body of an operation runs: the compiled one on CUDA, the torch one everywhere else."""

from __future__ import annotations

import torch


def compiled(x: torch.Tensor) -> bool:
    """Whether operations on `x` run on Triton kernels."""
    return x.is_cuda
