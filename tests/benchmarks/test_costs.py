"""The arithmetic of floors against the engine's own tensors, prompts and pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.costs import (
    EXPERTS,
    KV,
    Precision,
    Rate,
    bare,
    decoding,
    distinct_experts,
    kv_bytes,
    prefilling,
    text_step,
    vision_pass,
    weight_bytes,
)
from benchmarks.sizes import SIZES
from mdinfer.config import ModelConfig
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.prompts import PromptBuilder

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "experts"), [("bf16", "bf16"), ("bf16", "fp8"), ("float32", "float32")])
@pytest.mark.parametrize("linears", [None, "fp8"], ids=["linears-as-dtype", "linears-fp8"])
def test_weights_are_counted_to_the_byte(size: str, dtype: str, experts: str, linears: Rate | None) -> None:
    assert weight_bytes(SIZES[size], _precision(dtype, experts, linears)) == _held(SIZES[size], dtype, experts, linears)


def test_weights_that_cannot_be_fp8_are_counted_as_they_are() -> None:
    """Widths that are no multiples of 16: the tower keeps its dtype, the projection's second half does not."""
    raw = {"text": {"n_layers": 2, "dim": 128, "ff_dim": 200, "n_heads": 2}, "region": {"dim": 128}}
    vision = {"enc_dim": 72, "enc_n_heads": 1, "enc_n_layers": 2, "enc_ff_dim": 136, "proj_out_dim": 128}
    config = ModelConfig.from_dict({**raw, "vision": {**vision, "proj_inner_dim": 80}})
    plain, fp8 = (_held(config, "bf16", "bf16", linears) for linears in (None, "fp8"))
    halved = 2 * 4 * 128 * 128 + 80 * (144 + 128)  # attention in two layers, the projection
    scales = 2 * 4 * 128 + 80 + 128
    assert plain - fp8 == halved - 4 * scales
    assert weight_bytes(config, Precision(linears="fp8")) == fp8


def _precision(dtype: str, experts: str, linears: Rate | None) -> Precision:
    return Precision(dtype=dtype, experts=experts, linears=linears or "bf16")


def _held(config: ModelConfig, dtype: str, experts: str, linears: Rate | None) -> int:
    model = Moondream(
        config,
        dtype=TYPES[dtype],
        expert_dtype=TYPES[experts],
        linear_dtype=TYPES[linears] if linears else None,
        device=torch.device("meta"),
        max_context=1,
    )
    return sum(tensor.nbytes for tensor in model.weights().values())


@pytest.mark.parametrize("kv", KV)
def test_positions_of_the_cache_are_counted_to_the_byte(kv: str) -> None:
    text = ModelConfig().text
    page = KVCache.bytes_per_page(text.n_layers, text.n_heads, text.head_dim, 32, TYPES[kv])
    assert 32 * sum(kv_bytes(text, kv)) == page


def test_a_decoding_step_of_one_row_reads_a_share_of_the_weights() -> None:
    """By the tensors' names: all of the decoder, one row of the embedding, 8 of 64 experts."""
    config = ModelConfig()
    model = Moondream(config, dtype=torch.bfloat16, device=torch.device("meta"), max_context=1)
    read = 0.0
    for name, tensor in model.weights().items():
        if name.startswith("text."):
            expert = ".mlp.fc" in name and tensor.dim() == 3
            read += tensor.nbytes * (8 / 64 if expert else 1 / 51200 if name == "text.wte" else 1)
    cost = text_step(config.text, decoding(1, 0), Precision())
    weights = sum(part.bytes for part in cost if part.name != "keys and values")
    assert weights == pytest.approx(read, rel=1e-12)
    # What the usual estimate leaves out is there, and small.
    assert 0.99 < sum(part.bytes for part in bare(cost)) / sum(part.bytes for part in cost) < 0.995


def test_int4_has_scales_for_every_128_numbers() -> None:
    text, scale = ModelConfig().text, EXPERTS["int4"].scale
    numbers = 20 * 64 * 3 * 2048 * 1024
    whole, half = (weight_bytes(ModelConfig(), Precision(experts=name)) for name in ("bf16", "int4"))
    assert whole - half == numbers * (2 - 0.5 - scale / 128)
    cost = {part.name: part for part in text_step(text, decoding(10_000, 0), Precision(experts="int4"))}
    assert cost["experts"].bytes == pytest.approx(numbers * (0.5 + scale / 128))


def test_groups_are_whole_and_may_keep_more_than_a_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 inputs take a group of 128; a second number for each group is no part of the usual estimate."""
    config, scale = SIZES["200m-64x8"], EXPERTS["int4"].scale
    precision = Precision(experts="int4")
    before = text_step(config.text, decoding(1, 0), precision)
    inner, dim, experts = config.text.moe.expert_inner_dim, config.text.dim, 8 * 64
    assert inner == 64
    groups = 2 * inner * dim // 128 + dim
    whole = weight_bytes(config, precision)
    assert whole - weight_bytes(config, Precision()) == experts * (groups * (64 + scale) - 2 * 3 * dim * inner)
    monkeypatch.setitem(EXPERTS, "int4", replace(EXPERTS["int4"], scale=scale + 2))
    assert weight_bytes(config, precision) - whole == experts * groups * 2
    assert bare(text_step(config.text, decoding(1, 0), precision)) == bare(before)


@pytest.mark.parametrize("rows", [1, 4, 16, 64])
def test_distinct_experts(rows: int) -> None:
    """Against draws: a mean of 2000 counts, each at most 64 apart, is within 5 deviations of what is expected."""
    draw = np.random.default_rng(rows)
    picks = draw.random((2000, rows, 64)).argsort(axis=-1)[..., :8]
    counts = np.array([len(np.unique(pick)) for pick in picks])
    error = 5 * counts.std() / 2000**0.5
    assert abs(counts.mean() - distinct_experts(rows, 64, 8)) <= error + 1e-9


@pytest.mark.parametrize(("words", "cached"), [(1, 0), (44, 0), (44, 730), (44, 750)])
def test_pairs_are_those_that_prompts_ask_for(words: int, cached: int) -> None:
    prompt = PromptBuilder(0, 729).image().text([20] * words).build()
    visible = np.arange(1, len(prompt) + 1)
    visible[: len(prompt.visible)] = prompt.visible
    step = prefilling(3, len(prompt), cached=cached, block=730)
    assert step.pairs == 3 * int(visible[cached:].sum())
    assert (step.rows, step.cached, step.logits) == (3 * (len(prompt) - cached), 3 * cached, 3)


def test_a_decoding_row_scores_what_is_cached_and_itself() -> None:
    step = decoding(3, 100)
    assert (step.rows, step.logits, step.cached, step.pairs) == (3, 3, 300, 303)
    text = ModelConfig().text
    [cache] = [part for part in text_step(text, step, Precision()) if part.name == "keys and values"]
    assert cache.flops == 303 * 24 * 32 * (2 * 2 * 64)  # a pair is two products over 64 dimensions in each head
    assert cache.bytes == 303 * 24 * 2 * 32 * 64 * 2


def test_vision_work_grows_with_crops_and_its_weights_do_not() -> None:
    config = ModelConfig().vision
    few, many = ({part.name: part for part in vision_pass(config, crops, Precision())} for crops in (2, 12))
    for name in ("tower products", "tower attention"):
        assert many[name].flops == 6 * few[name].flops
        assert many[name].bytes == few[name].bytes
    assert many["projection"] == few["projection"]
