"""Many small arrays moved to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGN = 16  # bytes: what kernels may assume of a pointer, and so compile for, is then the same in every step

Array = npt.NDArray[Any]


class Packing:
    """Where each array lies; arrays of the same shapes and dtypes, packed in the same order, lie in the same places."""

    def __init__(self, arrays: Seq[Array]) -> None:
        self._places: list[tuple[int, int, torch.dtype, tuple[int, ...]]] = []
        at = 0
        for array in arrays:
            self._places.append((at, at + array.nbytes, torch.from_numpy(array[:0]).dtype, array.shape))
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        self.nbytes = at

    def fill(self, buffer: torch.Tensor, arrays: Seq[Array]) -> None:
        """Lay the arrays into a buffer (nbytes,) uint8 of the host."""
        into = buffer.numpy()
        for (start, end, *_), array in zip(self._places, arrays, strict=True):
            into[start:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The arrays as tensors within a buffer, on whatever device it is."""
        return [buffer[start:end].view(dtype).view(shape) for start, end, dtype, shape in self._places]


def host_buffer(nbytes: int, device: torch.device) -> torch.Tensor:
    """Memory that `device` can read, or write, while the host goes on."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def upload(arrays: Seq[Array], device: torch.device) -> list[torch.Tensor]:
    """One tensor for each array."""
    packing = Packing(arrays)
    buffer = host_buffer(packing.nbytes, device)
    packing.fill(buffer, arrays)
    return packing.views(buffer.to(device, non_blocking=True))
