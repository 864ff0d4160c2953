"""How kernels are started: on the device of their tensors, and not at all for an empty grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mdinfer.kernels._triton.launch import Config, launch, recorded


class Kernel:
    """Notes which device is the current one whenever it is started."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.current = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.started.append(self.current)

    def exchange(self, index: int) -> int:
        before = self.current
        self.current = index if index >= 0 else before
        return before


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", 0), ("cuda:2", 2), ("cpu", 0)])
def test_the_tensors_device_is_current(device: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts a kernel on the current device, whatever its pointers point to."""
    kernel = Kernel()
    monkeypatch.setattr(torch.cuda, "_exchange_device", kernel.exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", kernel.exchange)
    with FakeTensorMode():
        x = torch.empty(4, device=device)
    launch(kernel, (1,), x, config=Config())
    assert kernel.started == [expected]
    assert kernel.current == 0


def test_an_empty_grid_starts_nothing() -> None:
    kernel = Kernel()
    with recorded() as launches:
        launch(kernel, (3, 0), torch.empty(0), config=Config())
    assert not kernel.started and not launches
