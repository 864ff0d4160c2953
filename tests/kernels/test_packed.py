"""Weights packed for a CPU's library, against float64: in bfloat16 a product rounds its result once, by 2^-9."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch

from mdinfer.kernels import linear, moe_experts, packed
from mdinfer.kernels.float8 import float8_values
from mdinfer.kernels.moe import moe_route_torch
from mdinfer.kernels.packed import can_pack, linear_packed, pack
from tests.kernels.compare import randn, rms_ratio, to_array
from tests.kernels.moe_twin import expert_weights, experts_twin

CPU = torch.device("cpu")
Operation = Callable[..., torch.Tensor]
pytestmark = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="this torch or CPU has no such product")


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    yield
    packed._as_known.cache_clear()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (3, 20), (40, 24), (130, 70), (256, 512)], ids=str)
def test_products(N: int, K: int, bias: bool) -> None:
    weight, offset = randn(N, K, seed=1).bfloat16(), randn(N, seed=2).bfloat16()
    kept = pack(weight)
    assert kept.shape == weight.shape and torch.equal(kept.to_dense(), weight)
    for R in (0, 1, 2, 4, 17, 32, 40):
        x = randn(R, K).bfloat16()
        found = linear(x, kept, offset if bias else None)
        assert (found.shape, found.dtype, found.is_contiguous()) == ((R, N), torch.bfloat16, True)
        if R:
            want = to_array(x) @ to_array(weight).T + (to_array(offset) if bias else 0)
            assert rms_ratio(found, want) < 2.0**-8


def test_more_dimensions_and_steps_between_rows() -> None:
    x, weight = randn(2, 3, 48).bfloat16()[..., ::2], randn(40, 24).bfloat16()
    for rows in (x, x[0], x[:, 1]):
        assert rms_ratio(linear(rows, pack(weight)), to_array(rows) @ to_array(weight).T) < 2.0**-8


def packed_experts(weight: torch.Tensor, scale: torch.Tensor | None) -> list[torch.Tensor]:
    values = weight.float() if scale is None else float8_values(weight) * scale[..., None]
    return [pack(each) for each in values.bfloat16()]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("T", [1, 3, 40])
def test_experts(T: int, fp8: bool) -> None:
    """Three roundings in bfloat16, as of other experts, and one of fp8's weights: 1.5e-2."""
    weights, x = expert_weights(4, 70, 20, torch.bfloat16, fp8=fp8), randn(T, 70, seed=1).bfloat16()
    routing = moe_route_torch(randn(T, 4), 2)
    held = replace(
        weights,
        fc1=weights.fc1.to("meta"),
        fc2=weights.fc2.to("meta"),
        packed=(packed_experts(weights.fc1, weights.fc1_scale), packed_experts(weights.fc2, weights.fc2_scale)),
    )
    assert rms_ratio(moe_experts(x, routing, held), experts_twin(x, routing, weights)) < 1.5e-2


def test_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(CPU, torch.float32) and not can_pack(torch.device("cuda"), torch.bfloat16)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not can_pack(CPU, torch.bfloat16)
    for name in ("_reorder", "_product"):
        with monkeypatch.context() as patch:
            patch.setattr(packed, name, None)
            packed._as_known.cache_clear()
            assert not can_pack(CPU, torch.bfloat16)


def test_an_operation_that_has_changed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are private to torch: a fault must not be found in answers."""
    product = cast("Operation", packed._product)

    def other_arguments(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def one_argument(weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def no_bias(x: torch.Tensor, weight: torch.Tensor, bias: object, *rest: object) -> torch.Tensor:
        return product(x, weight, None, *rest)

    def one_row_wrong(x: torch.Tensor, *rest: object) -> torch.Tensor:
        return product(x, *rest) * (1 + (len(x) == 1))

    def gone(*args: object) -> torch.Tensor:
        raise NotImplementedError("no kernel for this CPU")

    changes = [("_product", change) for change in (other_arguments, no_bias, one_row_wrong, gone)]
    for name, change in [*changes, ("_reorder", one_argument), ("_reorder", gone), ("_supported", lambda: False)]:
        with monkeypatch.context() as patch:
            patch.setattr(packed, name, change)
            packed._as_known.cache_clear()
            assert not can_pack(CPU, torch.bfloat16), change
    packed._as_known.cache_clear()
    assert can_pack(CPU, torch.bfloat16)


def test_other_shapes_are_refused() -> None:
    kept = pack(randn(40, 24).bfloat16())
    for x in (randn(3, 24), randn(3, 20).bfloat16()):
        with pytest.raises(RuntimeError):
            linear_packed(x, kept)
