"""Random weights: every parameter filled, repeatable, and of the spread that its place asks for."""

from __future__ import annotations

import pytest
import torch

from mdinfer.checkpoint import dequantise_rows, random_weights
from mdinfer.kernels.int4 import dequantise
from tests.checkpoint.models import FP8, INT4, INT8, empty_targets, tiny_config


@pytest.mark.parametrize("experts", [FP8, INT8, INT4], ids=str)
def test_every_parameter_is_filled_and_finite(experts: torch.dtype) -> None:
    targets = empty_targets(tiny_config(), experts=experts)
    random_weights(targets)
    for name, values in targets.items():
        assert values.float().isfinite().all(), name
        assert values.float().std() > 0, name


def test_the_seed_decides_not_the_order() -> None:
    first, second, third = (empty_targets(tiny_config(), experts=FP8) for _ in range(3))
    random_weights(first, seed=5)
    random_weights(dict(reversed(second.items())), seed=5)
    random_weights(third, seed=6)
    assert all(torch.equal(first[name].float(), second[name].float()) for name in first)
    assert not any(torch.equal(first[name].float(), third[name].float()) for name in first)


def test_spreads() -> None:
    targets = empty_targets(tiny_config(dim=256), torch.float32)
    random_weights(targets)

    def deviation(name: str) -> float:
        return float(targets[name].std()) * float(targets[name].shape[-1] ** 0.5)

    assert abs(deviation("text.blocks.0.attn.qkv.weight") - 1) < 0.05
    assert abs(deviation("text.blocks.2.mlp.fc2.weight") - 1) < 0.1
    assert abs(deviation("text.blocks.2.mlp.router.weight") - 2) < 0.2
    assert abs(float(targets["text.blocks.0.ln.weight"].mean()) - 1) < 0.02
    assert abs(float(targets["vision.post_ln.bias"].mean())) < 0.02


@pytest.mark.parametrize("experts", [FP8, INT8], ids=str)
def test_weights_with_scales_have_the_spread_of_the_others(experts: torch.dtype) -> None:
    targets = empty_targets(tiny_config(dim=256, inner=64), experts=experts, linears=FP8)
    random_weights(targets)
    for part in ("blocks.2.mlp.fc1", "blocks.2.mlp.fc2", "blocks.2.attn.qkv", "blocks.0.mlp.fc2"):
        weight, scale = (targets[f"text.{part}.{kind}"] for kind in ("weight", "scale"))
        assert bool((scale > 0).all())
        values = dequantise_rows(weight, scale)
        assert abs(float(values.std()) * values.shape[-1] ** 0.5 - 1) < 0.1


def test_int4_experts_have_the_spread_of_the_others() -> None:
    config = tiny_config(dim=256, inner=64)
    targets = empty_targets(config, experts=INT4)
    random_weights(targets)
    for part, inputs in (("fc1", 256), ("fc2", 64)):
        weight, scale = (targets[f"text.blocks.2.mlp.{part}.{kind}"] for kind in ("weight", "scale"))
        assert bool((scale[..., 0] > 0).all()) and len(set(weight.flatten().tolist())) > 250
        values = dequantise(weight, scale, inputs, torch.float32)
        assert abs(float(values.std()) * inputs**0.5 - 1) < 0.1
        assert abs(float(values.mean())) * inputs**0.5 < 0.02


def test_no_two_parameters_or_rows_are_the_same() -> None:
    targets = empty_targets(tiny_config(), torch.float32)
    random_weights(targets)
    rows = targets["text.blocks.2.mlp.fc1.weight"].flatten(0, 1)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    first, second = (targets[f"text.blocks.{n}.attn.qkv.weight"] for n in (0, 1))
    assert not torch.equal(first, second)


def test_larger_than_a_window() -> None:
    targets = {"text.wte": torch.full((1200, 1024), float("nan"))}
    random_weights(targets)
    assert bool(targets["text.wte"].isfinite().all())
