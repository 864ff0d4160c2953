"""How inputs take turns, without a GPU."""

from __future__ import annotations

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
