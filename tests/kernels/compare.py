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


def assert_rounded_alike(found: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Rows in e4m3 with their scales, of values that two ways of computing them in float32 give.

    The ways differ by some 4e-7 of a row's values and of its scale. A step of e4m3 is at least 2^-4 of its value: of
    those of the row's size, 2 * 4e-7 / 2^-4 = 1.3e-5 lie so near a tie that they go the other way, to the next value.
    Smaller ones may come of a difference whose error is the row's; as many of them lie in each of the 9 halvings down
    to the last step, at most, as steps get finer: 1e-4 in all, and one of a test's by chance.
    """
    (q, scale), (want_q, want_scale) = found, want
    assert (q.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (q.shape, scale.shape) == (want_q.shape, want_scale.shape)
    assert torch.allclose(scale, want_scale, rtol=1e-6, atol=0)
    apart = (_place(q) - _place(want_q)).abs()
    assert int(apart.max()) <= 1 and int(apart.sum()) <= max(1, 1e-4 * q.numel())


def _place(q: torch.Tensor) -> torch.Tensor:
    """Of values of e4m3 in their order, so that neighbours differ by 1."""
    raw = q.view(torch.uint8).to(torch.int16)
    return torch.where(raw >= 128, 128 - raw, raw)
