"""The fp8 layouts give the answers of their dequantised bfloat16 twin.

The twin's expert weights are scale * value rounded to bfloat16, each off by at most 2^-9 of itself. Such errors are
independent, so an expert layer's output is off by about 2^-9 of its size for fc1 and again for fc2; the residual
stream and the head dilute it. The bound on logits is therefore, relative to their RMS, 2 * 2^-9 for each expert
layer. Kept in fp8, the products are the same numbers in another order: float32 rounding alone, 2^-24 a term over
at most 256 terms and a few layers, bounded by 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mdinfer
from mdinfer.checkpoint import find_checkpoint, quantise_rows
from mdinfer.model.moondream import Moondream
from tests.checkpoint.writers import dequantised, write_fp8_pt, write_fp8_safetensors, write_published
from tests.golden_data import checkpoint, model
from tests.model.test_text import Pass

FP8 = torch.float8_e4m3fn
WRITERS: dict[str, Callable[..., Path]] = {"safetensors": write_fp8_safetensors, "pt": write_fp8_pt}
PROMPT = "What color is the car?"


def fp8_weights() -> dict[str, torch.Tensor]:
    """tiny-a with its experts in fp8, everything else in bfloat16, which holds its values exactly."""
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model("tiny-a").weights().items():
        if tensor.ndim == 3 and ".mlp." in name:
            weights[name], scale = quantise_rows(tensor)
            weights[name.removesuffix("weight") + "scale"] = scale
        else:
            weights[name] = tensor.to(torch.bfloat16)
    return weights


def loaded(path: Path, expert_dtype: torch.dtype = torch.float32) -> Moondream:
    found = find_checkpoint(path, progress=False)
    built = Moondream(found.config, expert_dtype=expert_dtype)
    found.load_into(built.weights(), progress=False)
    return built


def first_logits(built: Moondream) -> torch.Tensor:
    """All logits after a fixed prompt of text."""
    ids = torch.arange(20, 60)
    with torch.inference_mode():
        x = built.embed(ids, torch.zeros(40), torch.zeros(40, 2), None)
        return built.text.logits(Pass(built)(x, 0, torch.arange(1, 41)))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    directory = tmp_path_factory.mktemp("twin")
    write_published(directory, model("tiny-a").config, dequantised(fp8_weights()))
    return first_logits(loaded(directory))


@pytest.mark.parametrize("layout", WRITERS)
def test_logits_of_the_dequantised_twin(tmp_path: Path, layout: str, twin: torch.Tensor) -> None:
    config = model("tiny-a").config
    WRITERS[layout](tmp_path, config, fp8_weights())
    logits = first_logits(loaded(tmp_path))
    expert_layers = sum(config.text.is_moe(i) for i in range(config.text.n_layers))
    error = (logits - twin).square().mean().sqrt() / twin.square().mean().sqrt()
    assert 0 < error < expert_layers * 2 * 2**-9  # the twin's rounding must show, or nothing was dequantised


@pytest.mark.parametrize("layout", WRITERS)
def test_experts_kept_in_fp8_compute_the_same(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path, model("tiny-a").config, fp8_weights())
    kept, plain = loaded(tmp_path, FP8), loaded(tmp_path)
    assert kept.weights()["text.blocks.2.mlp.fc1.weight"].dtype == FP8
    expected = first_logits(plain)
    error = (first_logits(kept) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 1e-5


@pytest.mark.parametrize("experts", ["auto", "fp8"])
def test_the_engine_loads_a_layout(tmp_path: Path, experts: str) -> None:
    write_fp8_safetensors(tmp_path, model("tiny-a").config, fp8_weights())
    tokenizer = checkpoint("tiny-a") / "tokenizer.json"
    with mdinfer.Engine.load(tmp_path, tokenizer=tokenizer, experts=experts, progress=False) as engine:
        assert engine.query(None, PROMPT, temperature=0, max_tokens=4).token_ids
        assert ("float8" in engine.description()) == (experts == "fp8")
