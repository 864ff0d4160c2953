"""The worst steps run as they are described; on a GPU what they take is measured and left free beside the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer import EngineConfig
from mdinfer.memory import cache_pages
from mdinfer.model.batch import KVCache
from mdinfer.picture_cutter import PictureCutter
from mdinfer.runner import Runner
from mdinfer.step_plan import StepPlan
from mdinfer.uncut import UncutPicture
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


@pytest.mark.parametrize(("pixels", "side"), [(90_000, 300), (50_000_000, 500)])
def test_the_worst_picture_that_the_device_cuts(pixels: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many crops as a pass has, cut from the largest picture that may come whole."""
    built, seen, cut = model("tiny-a"), list[tuple[int, ...]](), PictureCutter.cut
    monkeypatch.setattr("mdinfer.workspace.PICTURE_BYTES", 3 * 500 * 500)

    def cutting(cutter: PictureCutter, picture: UncutPicture, out: torch.Tensor) -> None:
        seen.append((picture.height, picture.width, len(out)))
        cut(cutter, picture, out)

    monkeypatch.setattr(PictureCutter, "cut", cutting)
    options = EngineConfig(resize="device", max_image_pixels=pixels, vision_crops=3, prefill_tokens=8, max_batch_size=1)
    worst_steps(built, options, max_context=120, kv_dtype=torch.float32)
    assert seen == [(side, side, 3)]


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
