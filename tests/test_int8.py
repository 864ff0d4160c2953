"""Engines with int8 experts: the numbers are those of the same weights multiplied out, and answers are repeatable."""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels.int8 import INT8, dequantise
from mdinfer.model.moondream import Moondream
from tests.golden_data import CHECKPOINTS, checkpoint, load_engine
from tests.model.test_layouts import first_logits
from tests.model.test_layouts import loaded as loaded_from


def loaded(name: str, experts: torch.dtype) -> Moondream:
    return loaded_from(checkpoint(name), experts)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits(name: str) -> None:
    """Those of the weights multiplied out, up to the order of sums; off the exact ones by no more than experts are.

    Steps of amax / 127 err by 0.29 of one on average: of normal weights, whose largest is 3 to 4 deviations, 1% of the
    RMS; sqrt(3) of that after fc1, u * g and fc2, which is a part of what logits are made of.
    """
    plain, kept = loaded(name, torch.float32), loaded(name, INT8)
    exact, found = first_logits(plain), first_logits(kept)
    weights = kept.weights()
    for key, target in plain.weights().items():
        if weights[key].dtype == INT8:
            target.copy_(dequantise(weights[key], weights[key.removesuffix("weight") + "scale"]))
    size = exact.square().mean().sqrt()
    assert (found - first_logits(plain)).square().mean().sqrt() / size < 1e-5
    assert 1e-4 < (found - exact).square().mean().sqrt() / size < 0.0175


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_answers(dtype: str) -> None:
    with load_engine("tiny-a", experts="int8", dtype=dtype) as engine:
        found = [engine.query(None, "What is it?", temperature=0, max_tokens=12).token_ids for _ in range(2)]
        assert found[0] and found[0] == found[1]
        assert f"{dtype}, experts int8\n" in engine.description()
