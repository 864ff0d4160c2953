"""int8 channels: the error bound, and rows that have no ordinary scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdinfer.checkpoint import dequantise_rows, find_checkpoint, quantise_channels
from mdinfer.kernels.int8 import dequantise
from tests.checkpoint.models import INT8, empty_targets, is_expert, parameter_shapes, tiny_config
from tests.checkpoint.writers import WRITERS, random_canonical_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [0.0, 2.0], ids=lambda spread: f"spread{spread}")
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (4, 32, 64)], ids=str)
def test_error_bound(shape: tuple[int, ...], spread: float, dtype: torch.dtype) -> None:
    """Half a scale, and 127 * 2^-23 of one for the quotient and the product in float32."""
    draw = torch.Generator().manual_seed(1)
    weight = (torch.randn(shape, generator=draw) * torch.randn(shape, generator=draw).mul(spread).exp()).to(dtype)
    q, scale = quantise_channels(weight)
    assert (q.dtype, q.shape) == (torch.int8, weight.shape)
    assert (scale.dtype, scale.shape) == (torch.bfloat16, weight.shape[:-1])
    error = (dequantise(q, scale).double() - weight.double()).abs()
    assert bool((error <= scale.double().unsqueeze(-1) * (0.5 + 127 * 2**-23)).all())
    assert bool((q.int().abs().amax(-1) >= 126).all())  # the scale's own rounding is 2^-8 of it at most


def test_the_largest_never_overflows() -> None:
    """Whatever the scale's rounding does: 127.5 and more would have to be cut off."""
    largest = torch.linspace(1, 2, 20_000).unsqueeze(1)
    q, _ = quantise_channels(torch.cat((largest, -largest), dim=1))
    assert q.int().abs().amax() == 127 and torch.equal(q[:, 0], -q[:, 1])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-37], ids=str)
def test_a_row_without_a_normal_scale_gets_one(size: float) -> None:
    q, scale = quantise_channels(torch.tensor([[size, -size], [1.0, 2.0]]))
    assert scale[0] == 1 and not q[0].any()
    assert float(scale[1]) == pytest.approx(2 / 127, rel=2**-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_a_bad_value_makes_a_bad_scale(value: float) -> None:
    _, scale = quantise_channels(torch.tensor([[1.0, value], [1.0, 2.0]]))
    assert scale.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_checkpoint_is_quantised_while_it_is_read(layout: str, stored: str, tmp_path: Path) -> None:
    if stored == "fp8" and layout == "published":
        pytest.skip("it has no scales")
    config = tiny_config()
    weights = random_canonical_weights(config, fp8=stored == "fp8")
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, experts=INT8)
    find_checkpoint(tmp_path).load_into(targets, progress=False)
    for name, shape in parameter_shapes(config).items():
        if not is_expert(name, shape):
            assert torch.equal(targets[name], weights[name]), name
            continue
        scale = name.removesuffix("weight") + "scale"
        exact = dequantise_rows(weights[name], weights[scale]) if stored == "fp8" else weights[name]
        q, expected = quantise_channels(exact)
        assert torch.equal(targets[name], q) and torch.equal(targets[scale], expected), name
