"""How kernels are started: on the device of their tensors, and not at all for an empty grid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from threading import Thread
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mdinfer.kernels import ExpertWeights, Routing
from mdinfer.kernels._triton import epilogue, moe_grouped, moe_small, norm
from mdinfer.kernels._triton import launch as launch_module
from mdinfer.kernels._triton.launch import Config, Target, launch, launch_dependently, recorded
from mdinfer.kernels._triton.moe_route import moe_route


class Kernel:
    """Notes which device is the current one whenever it is started."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.options: list[dict[str, Any]] = []
        self.current = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*args: Any, **options: Any) -> None:
            self.started.append(self.current)
            self.options.append(options)

        return start

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


def test_operands_that_lie_otherwise_than_their_shape_says_are_refused(device: torch.device) -> None:
    """Launchers go through weights by shape alone; a view of others would give wrong numbers without a word."""
    x, one, strided = (torch.ones(*shape, device=device) for shape in ((3, 16), (16,), (32,)))
    strided = strided[::2]
    chosen = Routing(experts=torch.zeros(3, 1, dtype=torch.int32, device=device), weights=x[:, :1])
    turned = torch.ones(1, 8, 16, device=device).mT  # (E, D, I) of a weight that lies as (E, I, D)
    experts = ExpertWeights(fc1=torch.ones(1, 16, 16, device=device), fc2=turned)
    calls: list[Callable[[], object]] = [
        lambda: norm.layer_norm(x, strided, one, 1e-5),
        lambda: norm.add_layer_norm(x, x, x, one, strided, 1e-5),
        lambda: epilogue.bias_gelu(x, strided, False),
        lambda: epilogue.bias_residual(x, strided, x, False),
        lambda: moe_small.moe_experts(x, chosen, experts),
        lambda: moe_grouped.moe_experts(x, chosen, experts, "plain"),
        lambda: moe_route(x, 2, strided),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="with strides"):
            call()


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("on", [False, True])
def test_dependent_launches(on: bool, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel and launcher are told the same, for a chip that can, and in that thread alone."""
    kernel = Kernel()
    monkeypatch.setattr(launch_module, "target_of", lambda x: Target(capability=capability, processors=1, shared=1))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())

    def start() -> None:
        launch_dependently(on)
        launch(kernel, (1,), torch.empty(4), config=Config(warps=8))

    thread = Thread(target=start)
    thread.start()
    thread.join()
    launch(kernel, (1,), torch.empty(4), config=Config())
    there, here = kernel.options
    expected = on and capability >= 90
    assert (there["PDL"], there.get("launch_pdl", False), there["num_warps"]) == (expected, expected, 8)
    assert (here["PDL"], here.get("launch_pdl", False)) == (False, False)
