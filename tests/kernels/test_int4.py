"""The layout of int4 weights, spelled out once more, and what experts in it may look like."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mdinfer.kernels.int4 import INT4, dequantise, pack, packed_shape, scale_shape, unpack
from tests.kernels.compare import rms_ratio
from tests.kernels.moe_twin import exact, expert_weights


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
