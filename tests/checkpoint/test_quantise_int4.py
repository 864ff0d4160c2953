"""int4 groups: the error bound, the search against none, and groups that have no ordinary step.

What 16 values spread evenly can do for 128 numbers is known for normal ones: the best spread for all of them at once
errs by 0.107 of their RMS. One of its own for each group errs less, and 0.1 is asked of the normal numbers here.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.checkpoint import quantise, quantise_groups
from mdinfer.kernels.int4 import GROUP, dequantise


def heavy_tailed(*shape: int) -> torch.Tensor:
    """Student's t with 4 degrees of freedom: of 128 numbers the largest is some 5 deviations, once in a while 20."""
    return torch.distributions.StudentT(4.0).sample(torch.Size(shape))


def share(weight: torch.Tensor) -> float:
    """The RMS of the error over that of the values."""
    found, exact = dequantise(*quantise_groups(weight), weight.shape[-1], torch.float32).double(), weight.double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0], ids=lambda spread: f"spread{spread}")
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 5, 128), (4, 3, 300)], ids=str)
def test_error_bound(shape: tuple[int, ...], spread: float, dtype: torch.dtype) -> None:
    """Half a step within the 16 values, beyond them the distance; 2^-20 of the largest for float32's roundings."""
    draw = torch.Generator().manual_seed(1)
    weight = (torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(spread).exp()).to(dtype)
    bits, scale = quantise_groups(weight)
    K = shape[-1]
    exact, found = weight.double(), dequantise(bits, scale, K, torch.float32).double()
    step, least = scale.double().repeat_interleave(GROUP, dim=-2)[..., :K, :].unbind(-1)
    beyond = torch.maximum(least - exact, exact - (least + 15 * step)).clamp(min=0)
    assert bool(((found - exact).abs() <= torch.maximum(step / 2, beyond) + exact.abs().amax() * 2**-20).all())


@pytest.mark.parametrize(("draw", "most"), [(torch.randn, 0.1), (heavy_tailed, 0.15)], ids=["normal", "heavy_tailed"])
def test_the_search_helps(draw: object, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = draw(500, 256)  # type: ignore[operator]
    found = share(weight)
    monkeypatch.setattr(quantise, "_SHARES", (1.0,))
    assert found < most and found < 0.97 * share(weight)


def test_no_group_is_worse_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(200, 128)
    searched = dequantise(*quantise_groups(weight), 128, torch.float32)
    monkeypatch.setattr(quantise, "_SHARES", (1.0,))
    whole = dequantise(*quantise_groups(weight), 128, torch.float32)
    errors = [(values - weight).square().sum(-1) for values in (searched, whole)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())


def test_what_int4_holds_comes_back_exactly() -> None:
    values = (torch.arange(16).repeat(8) * 0.25 - 1.5).unsqueeze(0)
    assert torch.equal(dequantise(*quantise_groups(values), 128, torch.float32), values)


@pytest.mark.parametrize("value", [0.0, -3.0, 0.15625, 1e-40, 1e30], ids=str)
def test_groups_of_one_value(value: float) -> None:
    """They are that value, as bfloat16 has it."""
    weight = torch.full((2, 150), value)
    weight[1] = torch.randn(150)
    bits, scale = quantise_groups(weight)
    assert torch.equal(dequantise(bits, scale, 150, torch.float32)[0], weight[0].bfloat16().float())
    assert scale[0, :, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e20, 1e37], ids=str)
def test_any_size(size: float) -> None:
    weight = torch.randn(20, 128)
    assert share(weight * size) == pytest.approx(share(weight), rel=1e-2)


@pytest.mark.parametrize("place", [3, 140])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_a_bad_value_makes_a_bad_step(value: float, place: int) -> None:
    weight = torch.randn(2, 150)
    weight[0, place] = value
    _, scale = quantise_groups(weight)
    assert scale[..., 0].isfinite().tolist() == [[place >= 128, place < 128], [True, True]]


def test_beyond_the_inputs_there_are_zeros() -> None:
    bits, _ = quantise_groups(torch.randn(3, 140) + 5)
    last = bits[:, 64:]
    assert bool((last[:, 12:] == 0).all()) and bool((last[:, :12] < 16).all()) and bool((last[:, :12] > 0).any())


def test_rows_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(3, 7, 200)
    whole = quantise_groups(weight)
    monkeypatch.setattr(quantise, "_CPU_VALUES", 500)
    for mine, theirs in zip(quantise_groups(weight), whole, strict=True):
        assert torch.equal(mine, theirs)
