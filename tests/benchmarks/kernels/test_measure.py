"""How inputs take turns and calls are timed, on a GPU that is made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels import measure
from tests.benchmarks.kernels.fakes import case

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("elements", "touched", "free", "copies"),
    [
        (1000, 0, 1 << 40, 26),  # 50000 bytes of cache filled twice by 4000 each, and one more
        (1000, 1000, 1 << 40, 101),  # of which a call reads 1000
        (100_000, 0, 1 << 40, 2),
        (10, 0, 1 << 40, measure.MOST_COPIES),
        (1000, 0, 36_000, 3),  # a third of the memory is for inputs
        (100_000, 0, 1000, 2),
    ],
)
def test_inputs_outgrow_the_cache(
    elements: int, touched: int, free: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50_000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    made = case(inputs=lambda device: (torch.zeros(elements),), bytes=touched)
    assert len(measure.rotated(made, GPU)) == copies


@dataclass
class Places:
    page: torch.Tensor
    more: Any


def test_sizes_count_what_lies_within() -> None:
    numbers = torch.zeros(3, dtype=torch.int64)
    assert measure.size_of((numbers, [Places(numbers, (numbers[:1],)), None], 5)) == 24 + 24 + 8


def test_ceilings_of_a_cpu() -> None:
    found = measure.ceilings(torch.device("cpu"))
    assert found["bytes_per_s"] > 0 and found["flops_per_s"] > 0 and found["fp8_flops_per_s"] is None


class FakeGpu:
    """A clock that calls move on: by 0.001 ms of the device, and 0.01 ms of the host where no graph replays them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.capturing, self.captured, self.strict = 0.0, False, 0, False
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = gpu.clock

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class Graph:
            def replay(self) -> None:
                gpu.clock += 0.001 * gpu.captured

        @contextmanager
        def graph(into: Graph) -> Iterator[None]:
            gpu.capturing = True
            yield
            gpu.capturing = False

        def debug_mode(mode: str) -> None:
            gpu.strict = mode == "error"

        for name, fake in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "synchronize": lambda: None,
            "set_sync_debug_mode": debug_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def call(self) -> None:
        if self.capturing:
            self.captured += 1
        else:
            self.clock += 0.011

    def waiting_call(self) -> None:
        assert not self.capturing
        if self.strict:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.clock += 0.5


def test_replays_leave_the_host_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    timer = measure.timer_for(GPU)
    assert timer([gpu.call] * 7) == [pytest.approx(0.001)] * measure.SAMPLES
    assert gpu.captured == 7 * (round(measure.LEAST_MS / 0.011) // 7)
    assert timer([gpu.waiting_call] * 3) == [pytest.approx(0.5)] * measure.SAMPLES


def test_a_graph_has_every_call_once_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    assert measure.timer_for(GPU)([gpu.call] * 1200) == [pytest.approx(0.001)] * measure.SAMPLES
    assert gpu.captured == 1200
