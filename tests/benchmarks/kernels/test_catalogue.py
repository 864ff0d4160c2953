"""The cases hold together: what can be seen of them without computing anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.aot import CHIPS
from benchmarks.kernels.case import Call, Case
from benchmarks.kernels.catalogue import all_cases
from benchmarks.kernels.check import tensors
from mdinfer.kernels._triton.launch import recorded

CASES = all_cases()
H100 = next(chip for chip in CHIPS if chip.capability == 90)


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_complete(case: Case) -> None:
    assert 0 <= case.bound <= 0.1 and case.why
    assert case.bytes or case.flops
    if case.bar:
        of, share = case.bar
        assert 0 < share <= 1
        assert any(who.startswith(of) for who in case.rivals) or getattr(case, of) > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twin_and_rivals_take_the_inputs(case: Case) -> None:
    """As far as tensors without values go; the twin's results have the shapes of the kernel's."""
    with recorded(run=False, target=H100.target):
        inputs = case.inputs(torch.device("meta"))
        results = case.run(*inputs)
    shapes = [tensor.shape for tensor in tensors(results)]
    twin = _without_values(case.twin, inputs)
    assert twin is None or case.seen or [tensor.shape for tensor in tensors(twin)] == shapes
    for rival in case.rivals.values():
        _without_values(rival, inputs)


def _without_values(call: Call, inputs: tuple[Any, ...]) -> Any:
    """None where a value is needed."""
    try:
        return call(*inputs)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if "meta" not in str(error).lower():
            raise
        return None
