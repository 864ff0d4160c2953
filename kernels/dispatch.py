"""Which body of an operation runs: the compiled one on CUDA, the torch one everywhere else."""

from __future__ import annotations

import torch


def compiled(x: torch.Tensor) -> bool:
    """Whether operations on `x` run on Triton kernels."""
    return x.is_cuda


def launch_dependently(on: bool) -> None:
    """Whether this thread's kernels are started while those before them end, where the GPU can do so."""
    from mdinfer.kernels._triton import launch

    launch.launch_dependently(on)
