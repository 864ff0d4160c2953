"""Engines with int4 experts: the numbers are those of the same weights multiplied out, on a CPU and on the kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mdinfer import Engine
from mdinfer.checkpoint import find_checkpoint, random_weights
from mdinfer.kernels._triton import moe_configs
from mdinfer.kernels.int4 import INT4, can_lay_out, dequantise
from mdinfer.model.moondream import Moondream
from tests.checkpoint.models import tiny_config
from tests.golden_data import CHECKPOINTS, checkpoint, load_engine
from tests.model.test_layouts import first_logits
from tests.model.test_layouts import loaded as loaded_from
from tests.test_golden_triton import on_kernels

QUESTIONS = ("cat?", "What is it?")


def loaded(name: str, experts: torch.dtype) -> Moondream:
    return loaded_from(checkpoint(name), experts)


def multiplied_out(name: str) -> Moondream:
    """The model whose experts are, in float32, what int4 makes of them."""
    kept, plain = loaded(name, INT4).weights(), loaded(name, torch.float32)
    for key, target in plain.weights().items():
        if kept[key].dtype == INT4:
            scale = kept[key.removesuffix("weight") + "scale"]
            target.copy_(dequantise(kept[key], scale, target.shape[-1], torch.float32))
    return plain


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits(name: str) -> None:
    """Those of the weights multiplied out, up to the order of sums; off the exact ones by no more than experts are.

    A weight errs by 0.1 of the weights' RMS, u and g share their inputs but not their errors, and fc2 errs once more:
    0.1 * sqrt(3) of what experts give, which is a part of what logits are made of.
    """
    found, expected, exact = (
        first_logits(model) for model in (loaded(name, INT4), multiplied_out(name), loaded(name, torch.float32))
    )
    size = exact.square().mean().sqrt()
    assert (found - expected).square().mean().sqrt() / size < 1e-5
    assert 0.01 < (found - exact).square().mean().sqrt() / size < 0.17


@pytest.mark.skipif(not can_lay_out(128, 128, torch.bfloat16), reason="this torch or CPU has no other layout")
def test_a_model_is_laid_out_once_where_all_sizes_fit() -> None:
    """Logits stay those of the weights as they came, up to bfloat16's roundings through the layers: a few times 2^-9.
    Where fc2 has 64 inputs, or numbers are float32, bits stay as they are."""
    for inner, dtype, changes in (
        (128, torch.bfloat16, True),
        (64, torch.bfloat16, False),
        (128, torch.float32, False),
    ):
        config = tiny_config(dim=128, inner=inner)
        config = replace(config, text=replace(config.text, vocab_size=64))
        model = Moondream(config, dtype=dtype, expert_dtype=INT4)
        random_weights(model.weights())
        name = "text.blocks.2.mlp.fc1.weight"
        before, bits = first_logits(model).float(), model.weights()[name].clone()
        model.lay_out()
        assert torch.equal(model.weights()[name], bits) != changes
        after = first_logits(model).float()
        assert torch.equal(before, after) != changes
        assert (after - before).norm() / before.norm() < 2e-2


def answers(engine: Engine) -> list[list[int]]:
    picture = torch.arange(64 * 48 * 3).view(64, 48, 3).to(torch.uint8).numpy()
    found = [engine.query(None, question, temperature=0, max_tokens=12) for question in QUESTIONS]
    return [result.token_ids for result in [*found, engine.caption(picture, temperature=0, max_tokens=12)]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_engine_answers(name: str, dtype: str) -> None:
    with load_engine(name, experts="int4", dtype=dtype) as engine:
        found = answers(engine)
        assert all(found) and answers(engine) == found
        assert f"{dtype}, experts int4 in groups of 128\n" in engine.description()


def test_weights_take_half_a_byte() -> None:
    """In tiny-a fc1 has 128 inputs, fc2 64, which take the room of 128."""
    config = find_checkpoint(checkpoint("tiny-a")).config.text
    count, inner, D = config.moe.num_experts, config.moe.expert_inner_dim, config.dim
    assert (D, inner) == (128, 64) and config.is_moe(2)
    kept = {key: value for key, value in loaded("tiny-a", INT4).weights().items() if "text.blocks.2.mlp.fc" in key}
    assert sum(value.nbytes for value in kept.values()) == count * (2 * inner + D) * (64 + 4)


def test_the_kernels_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens of a text, in the interpreter where there is no GPU: a prompt of many rows, then steps of one."""
    with load_engine("tiny-b", experts="int4") as engine:
        expected = engine.query(None, "What is this, and where?", temperature=0, max_tokens=3).token_ids
    device, seen = on_kernels(monkeypatch)
    with load_engine("tiny-b", device=device, experts="int4") as engine:
        found = engine.query(None, "What is this, and where?", temperature=0, max_tokens=3).token_ids
    moe_configs.product_config.cache_clear()
    assert found == expected
    experts = {"grouped_fc1_kernel", "grouped_fc2_kernel", "small_int4_fc1_kernel", "small_int4_fc2_kernel"}
    assert experts <= seen and not {"small_fc1_kernel", "small_fc2_kernel"} & seen
