"""How far a kernel is from its float64 twin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def to_array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.double().cpu().numpy()
    return array


def rms_ratio(found: torch.Tensor, twin: Array) -> float:
    """Root mean square of the error over that of the twin; NaN wherever the kernel gave NaN."""
    assert found.shape == twin.shape, (found.shape, twin.shape)
    error = to_array(found) - twin
    return float(np.sqrt((error**2).sum() / (twin**2).sum()))


def store_error(dtype: torch.dtype) -> float:
    """The most that storing a value in `dtype` changes it, as a share of it.

    Half a step of the mantissa; a whole step on a CPU in bfloat16, which Triton's interpreter cuts off.
    """
    half = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    return 2 * half if dtype == torch.bfloat16 and not torch.cuda.is_available() else half


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
