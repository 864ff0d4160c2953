"""How far a kernel is from its float64 twin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def to_array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.double().numpy()
    return array


def rms_ratio(found: torch.Tensor, twin: Array) -> float:
    """Root mean square of the error over that of the twin; NaN wherever the kernel gave NaN."""
    assert found.shape == twin.shape, (found.shape, twin.shape)
    error = to_array(found) - twin
    return float(np.sqrt((error**2).sum() / (twin**2).sum()))


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
