"""Keys and values in another precision than the model's: memory, logits, answers.

Tolerance: an e4m3 row errs by at most 2^-4 / sqrt(3) of its RMS, 0.036. Keys and values of four layers, independent
of each other, come to 0.036 * sqrt(8) = 0.1 of the logits' RMS if every one passed on in full. bfloat16 rows err by
2^-9 / sqrt(3): 0.0032 in the same way.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer import EngineConfig
from mdinfer.memory import cache_pages
from mdinfer.model.batch import KVCache
from mdinfer.result import Result
from tests.golden_data import CHECKPOINTS, cases, check, data, load_engine, model, request_of
from tests.model.test_text import PAGES, Pass, prompt_rows

FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")
BOUNDS = {torch.bfloat16: 0.0032, FP8: 0.1}
CLEAR_MARGIN = 0.3  # of logits, between the best token and the next, throughout an answer; few tiny answers have it


def logits(name: str, prompt: str, dtype: torch.dtype) -> torch.Tensor:
    """Of a prompt's last position and of the golden steps after it, over scattered pages in a cache of NaN."""
    built = model(name)
    with torch.inference_mode():
        x, visible = prompt_rows(built, name, prompt)
        forward = Pass(built)
        forward.cache = KVCache.allocate(built.config.text, pages=PAGES, page_size=32, dtype=dtype, device=CPU)
        for tensor in (forward.cache.k, forward.cache.v, forward.cache.k_scale, forward.cache.v_scale):
            if tensor is not None:
                tensor.fill_(float("nan"))
        hidden = [forward(x, 0, visible)[-1:]]
        hidden += [forward.token(s["input_token"], s["position"]) for s in data(name, "text")[prompt]["decode"]]
        found: torch.Tensor = built.text.logits(torch.cat(hidden))
    return found


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("prompt", ["txt", "img"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_stay_near(name: str, prompt: str, dtype: torch.dtype) -> None:
    """And are not those of the model's own precision: the cache is what it is said to be."""
    exact, found = logits(name, prompt, torch.float32), logits(name, prompt, dtype)
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert BOUNDS[dtype] / 10 < error < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
def test_memory_is_counted_with_scales(dtype: torch.dtype) -> None:
    """tiny-a: 2 (k, v) x 4 layers x 2 heads x 32 positions, a row of 64 numbers each, in fp8 with 4 bytes of scale."""
    text = model("tiny-a").config.text
    page = 2 * 4 * 2 * 32 * {torch.float32: 256, torch.bfloat16: 128, FP8: 64 + 4}[dtype]
    assert KVCache.allocate(text, pages=3, page_size=32, dtype=dtype, device=CPU).nbytes == 3 * page
    options = EngineConfig(kv_memory=100 * page + 5)
    assert cache_pages(text, options, max_context=1000, dtype=dtype, device=CPU) == 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_layers_are_parts_of_the_whole(dtype: torch.dtype) -> None:
    text = model("tiny-a").config.text
    cache = KVCache.allocate(text, pages=3, page_size=8, dtype=dtype, device=CPU)
    for i in range(text.n_layers):
        layer = cache.layers[i]
        for mine, whole in ((layer.k, cache.k), (layer.v, cache.v)):
            assert mine.data_ptr() == whole[i].data_ptr() and mine.shape == whole.shape[1:]
        for scale, scales in ((layer.k_scale, cache.k_scale), (layer.v_scale, cache.v_scale)):
            assert (scale is None) == (scales is None) == (dtype != FP8)
            assert scale is None or scales is None or scale.data_ptr() == scales[i].data_ptr()


def answers(**options: Any) -> list[Result]:
    with load_engine("tiny-b", kv_dtype="fp8", **options) as engine:
        assert engine._cache.k.dtype == engine._cache.v.dtype == FP8
        texts = [engine.query(None, question, temperature=0, max_tokens=12) for question in ("cat?", "What is it?")]
        picture = torch.arange(64 * 48 * 3).view(64, 48, 3).to(torch.uint8).numpy()
        return [*texts, engine.caption(picture, length="short", temperature=0, max_tokens=12)]


def test_an_engine_answers_the_same_whatever_its_pages() -> None:
    """Scales belong to tokens and heads: how tokens lie in pages changes no number."""
    few, many = answers(page_size=32), answers(page_size=5)
    assert [r.token_ids for r in few] == [r.token_ids for r in many]
    assert all(r.token_ids for r in few)


def test_golden_answers_with_clear_choices_stay() -> None:
    clear = [case for case in cases("tiny-a", "e2e") if case["min_margin"] >= CLEAR_MARGIN]
    assert clear
    with load_engine("tiny-a", kv_dtype="fp8") as engine:
        for case in clear:
            check(case, engine.submit(request_of(case)).result(timeout=60))
