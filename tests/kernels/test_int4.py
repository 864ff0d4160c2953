"""The layout of int4 weights, spelled out once more, and what experts in it may look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch

from mdinfer.kernels import Routing, int4, moe_experts, moe_route
from mdinfer.kernels.int4 import (
    INT4,
    can_lay_out,
    dequantise,
    lay_out,
    linear_laid_out,
    pack,
    packed_shape,
    scale_shape,
    unpack,
)
from tests.kernels.compare import randn, rms_ratio, to_array
from tests.kernels.moe_twin import exact, expert_weights, experts_twin

Operation = Callable[..., torch.Tensor]


def test_where_an_input_lies() -> None:
    q = torch.zeros(1, 2, 128, dtype=torch.uint8)
    q[0, 1, 5], q[0, 1, 64 + 5], q[0, 0, 127] = 3, 9, 15
    bits = pack(q)
    assert bits.dtype == INT4 and bits.shape == (1, 128)
    assert bits[0, 64 + 5] == 3 + 16 * 9 and bits[0, 63] == 16 * 15 and int((bits != 0).sum()) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_packed_numbers_come_back(dtype: torch.dtype) -> None:
    q = torch.randint(0, 16, (3, 4, 2, 128))
    assert torch.equal(unpack(pack(q.to(dtype))), q.to(torch.uint8))


@pytest.mark.parametrize(("K", "groups"), [(1, 1), (64, 1), (128, 1), (129, 2), (2048, 16)])
def test_shapes(K: int, groups: int) -> None:
    assert packed_shape(7, 3, K) == (7, 3, 64 * groups)
    assert scale_shape(7, 3, K) == (7, 3, groups, 2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-7), (torch.bfloat16, 2.0**-9)], ids=str)
@pytest.mark.parametrize("D", [20, 128, 300])
def test_values(D: int, dtype: torch.dtype, bound: float) -> None:
    """Rounded by the arithmetic in float32, then to the type: half of its last place at most."""
    weights = expert_weights(3, D, 5, torch.float32, int4=True)
    assert weights.fc1_scale is not None
    found = dequantise(weights.fc1, weights.fc1_scale, D, dtype)
    assert found.dtype == dtype
    assert rms_ratio(found, exact(weights.fc1, weights.fc1_scale, D)) < bound


def test_experts_of_other_shapes_are_refused() -> None:
    weights = expert_weights(3, 140, 20, torch.float32, int4=True)
    assert weights.int4 and weights.inner == 20
    fc2, scale = weights.fc2, weights.fc1_scale
    assert scale is not None
    for wrong in (
        {"fc2": fc2[:, :, :32]},
        {"fc2": torch.zeros(3, 128, 64, dtype=INT4)},  # 128 outputs, whose inputs are one group of fc1's, not two
        {"fc1_scale": scale[..., 0]},
        {"fc1_scale": scale[:, :, :1]},
        {"fc1_scale": None},
        {"fc2": torch.zeros(3, 140, 20), "fc2_scale": None},
    ):
        with pytest.raises(AssertionError):
            replace(weights, **wrong)


laid_out = pytest.mark.skipif(not can_lay_out(64, 128, torch.bfloat16), reason="this torch or CPU has no such product")


@laid_out
@pytest.mark.parametrize(("N", "K"), [(64, 128), (192, 384)], ids=str)
@pytest.mark.parametrize("R", [1, 4, 5, 33])
def test_products_of_the_other_layout(R: int, N: int, K: int) -> None:
    """The result rounded once, 2^-9; the middle by 2^-9 too: of these ranges it is some 1.1 steps, in RMS, and weights
    lie 4.6 steps about it."""
    weights = expert_weights(1, K, N // 2, torch.bfloat16, int4=True)
    assert weights.fc1_scale is not None
    bits, scale, x = weights.fc1[0].clone(), weights.fc1_scale[0].clone(), randn(R, K).bfloat16()
    twin = to_array(x) @ exact(bits, scale, K).T
    lay_out(bits, scale)
    assert rms_ratio(linear_laid_out(x, bits, scale), twin) < 2.0**-9 * 1.5


@laid_out
@pytest.mark.parametrize("T", [1, 3, 40])
def test_experts_in_the_other_layout(T: int) -> None:
    """Three roundings in bfloat16, as of other experts: 1.5e-2."""
    weights, x = expert_weights(4, 128, 128, torch.bfloat16, int4=True), randn(T, 128, seed=1).bfloat16()
    route = moe_route(randn(T, 4), 2)
    routing = Routing(experts=route.experts, weights=route.weights)
    twin = experts_twin(x, routing, weights)
    for bits, scale in ((weights.fc1, weights.fc1_scale), (weights.fc2, weights.fc2_scale)):
        assert scale is not None
        for e in range(4):
            lay_out(bits[e], scale[e])
    assert rms_ratio(moe_experts(x, routing, replace(weights, laid_out=True)), twin) < 1.5e-2


def test_when_there_is_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    for N, K, dtype in ((64, 64, torch.bfloat16), (32, 128, torch.bfloat16), (64, 128, torch.float32)):
        assert not can_lay_out(N, K, dtype)
    for name in ("_layout", "_product"):
        with monkeypatch.context() as patch:
            patch.setattr(int4, name, None)
            assert not can_lay_out(64, 128, torch.bfloat16)


@laid_out
def test_an_operation_that_has_changed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are private to torch: a fault must not be found in answers."""
    layout, product = cast("Operation", int4._layout), cast("Operation", int4._product)

    def transposed(q: torch.Tensor, tiles: int) -> torch.Tensor:
        return layout(q.flip(-1), tiles)

    def other_middle(x: torch.Tensor, weight: torch.Tensor, group: int, numbers: torch.Tensor) -> torch.Tensor:
        return product(x, weight, group, torch.stack((numbers[..., 0], numbers[..., 1] - 8 * numbers[..., 0]), -1))

    def other_arguments(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def one_row_wrong(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return product(x, *rest) * (1 + (len(x) == 1))

    def gone(*args: object) -> torch.Tensor:
        raise NotImplementedError("no kernel for this CPU")

    changes = [("_layout", transposed), ("_layout", gone), ("_product", other_middle), ("_product", other_arguments)]
    for name, change in [*changes, ("_product", one_row_wrong), ("_product", gone)]:
        with monkeypatch.context() as patch:
            patch.setattr(int4, name, change)
            int4._as_known.cache_clear()
            assert not can_lay_out(64, 128, torch.bfloat16), change.__name__
    int4._as_known.cache_clear()
    assert can_lay_out(64, 128, torch.bfloat16)
