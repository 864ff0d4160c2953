"""The worst steps run as they are described; on a GPU what they take is measured and left free beside the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer import EngineConfig
from mdinfer.memory import cache_pages
from mdinfer.model.batch import KVCache
from mdinfer.runner import Runner
from mdinfer.step_plan import StepPlan
from mdinfer.workspace import workspace_bytes, worst_steps
from tests.golden_data import load_engine, model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"prefill_tokens": 792, "max_batch_size": 8, "vision_crops": 3}, [100] * 8),
        ({"prefill_tokens": 3, "max_batch_size": 10, "vision_crops": 1}, [74] * 10),  # an image has 730 positions
        ({"prefill_tokens": 5000, "max_batch_size": 2, "vision_crops": 2}, [120] * 2),
    ],
)
def test_the_worst_steps(options: dict[str, int], rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    built, plans, crops = model("tiny-a"), list[StepPlan](), list[int]()
    launch, see = Runner.launch, built.vision.crop_features

    def noting(runner: Runner, plan: StepPlan, **more: Any) -> Any:
        plans.append(plan)
        return launch(runner, plan, **more)

    monkeypatch.setattr(Runner, "launch", noting)

    def seeing(pixels: torch.Tensor) -> torch.Tensor:
        crops.append(len(pixels))
        return see(pixels)

    monkeypatch.setattr(built.vision, "crop_features", seeing)
    taken = worst_steps(built, EngineConfig(**options), max_context=120, kv_dtype=torch.float32)  # type: ignore[arg-type]
    [plan] = plans
    assert [chunk.end - chunk.start for chunk in plan.chunks] == rows
    assert max(crops) == options["vision_crops"]
    text = built.config.text
    page = KVCache.bytes_per_page(text.n_layers, text.n_heads, text.head_dim, 32, torch.float32)
    assert taken == page * sum(-(-length // 32) for length in rows)


def test_a_cpu_keeps_no_account() -> None:
    assert workspace_bytes(model("tiny-a"), EngineConfig(), max_context=99, kv_dtype=torch.float32, graphs=True) == 0


def test_the_workspace_is_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    text = model("tiny-a").config.text
    page = KVCache.bytes_per_page(text.n_layers, text.n_heads, text.head_dim, 32, torch.float32)
    monkeypatch.setattr("mdinfer.memory.available_bytes", lambda device: 1000 * page)

    def pages(device: str, workspace: int) -> int:
        return cache_pages(
            text,
            EngineConfig(),
            max_context=1 << 20,
            dtype=torch.float32,
            device=torch.device(device),
            workspace=workspace,
        )

    assert pages("cuda", 0) == 950
    assert pages("cuda", 200 * page) == 760
    assert pages("cpu", 0) == 250


def test_the_description_says_what_there_is() -> None:
    with load_engine("tiny-a", max_batch_size=3, max_context=900) as engine:
        positions = engine._cache.k.shape[1] * 32
        assert positions == 3 * 29 * 32
        lines = dict(line.split(maxsplit=1) for line in engine.description().splitlines())
        assert lines["capacity"] == "3 requests of 800 tokens at once, context 900 tokens"
        assert "weights" in lines["memory"] and "KV cache" in lines["memory"]
