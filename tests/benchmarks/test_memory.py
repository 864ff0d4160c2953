"""The memory table: weights to the byte, a workspace that is what steps take, and cells that fit and are full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.memory import Need, requests, step_bytes
from benchmarks.precisions import EXPERT_TYPES, KV_TYPES, LINEAR_TYPES
from benchmarks.sizes import SIZES
from benchmarks.trace import storage_of
from mdinfer.config import ModelConfig
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig
from tests.golden_data import GOLDEN


def held(model: torch.nn.Module) -> int:
    """Bytes of all tensors that the modules of a real model hold, parameters or not, each memory once."""
    storages = {
        storage_of(value): value.untyped_storage().nbytes()
        for module in model.modules()
        for value in (*vars(module).values(), *module.parameters())
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())


@pytest.mark.parametrize("size", ["20m", "tiny-a"])
@pytest.mark.parametrize("experts", [name for name in EXPERT_TYPES if name != "int8"])  # which no GPU takes
@pytest.mark.parametrize("linears", LINEAR_TYPES)
def test_weights_are_what_a_real_model_takes(size: str, experts: str, linears: str) -> None:
    """Up to what the allocator rounds up to: 512 bytes for each tensor."""
    config = SIZES.get(size) or ModelConfig.from_file(GOLDEN / "checkpoints" / size / "config.json")
    model = Moondream(
        config,
        dtype=torch.bfloat16,
        expert_dtype=EXPERT_TYPES[experts],
        linear_dtype=LINEAR_TYPES[linears],
        device="cpu",
    )
    counted = Need.of(config, experts, "bf16", EngineConfig(max_batch_size=2), linears=linears).weights
    tensors = sum(1 for _ in model.parameters()) + 2  # RoPE's table and the padded patches
    assert 0 <= counted - held(model) < 512 * tensors


def test_the_workspace_grows_with_what_makes_steps_large() -> None:
    model = Moondream(ModelConfig(), dtype=torch.bfloat16, device=torch.device("meta"))
    few, usual, crops = (
        step_bytes(model, options, torch.bfloat16)
        for options in (
            EngineConfig(prefill_tokens=1024, vision_crops=2),
            EngineConfig(),
            EngineConfig(vision_crops=64),
        )
    )
    # The experts' results, 8 rows for each of the step's positions in bfloat16, are the largest part of a prefill;
    # two layers' of them cannot be there at once.
    rows = (4096 + 64) * 8 * 2 * 2048
    assert rows < usual < 3 * rows
    assert few < usual / 2
    assert crops > 64 * 729 * 2 * (4304 + 2 * 1152) > usual


def test_the_cache_is_no_part_of_the_workspace() -> None:
    """So its precision changes next to nothing."""
    model = Moondream(ModelConfig(), dtype=torch.bfloat16, device=torch.device("meta"))
    plain, fp8 = (step_bytes(model, EngineConfig(), dtype) for dtype in KV_TYPES.values())
    assert plain == pytest.approx(fp8, rel=0.02)


def test_rounded_rows_take_no_more_than_they_save() -> None:
    """Rows in e4m3 stand beside those they are of, or in their place."""
    plain, fp8 = (
        step_bytes(
            Moondream(ModelConfig(), dtype=torch.bfloat16, linear_dtype=linears, device=torch.device("meta")),
            EngineConfig(),
            torch.bfloat16,
        )
        for linears in LINEAR_TYPES.values()
    )
    assert fp8 == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("gib", [12, 24])
def test_cells_fit_and_are_full(gib: int) -> None:
    config, options = ModelConfig(), EngineConfig()
    need = Need.of(config, "fp8", "fp8", options)
    count = requests(config, need, "fp8", options, gib * 2**30, 800)
    left = gib * 2**30 - need.weights - need.workspace
    assert 0 < count * 25 * need.page <= 0.95 * left < (count + 1) * 25 * need.page
    assert requests(config, need, "fp8", options, need.weights + need.workspace, 800) == 0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.json"
    memory.main(["--card", "8", "24", "--markdown", "--json", str(path)])
    result: dict[str, Any] = json.loads(path.read_text())
    small, large = (card["holds"] for card in result["cards"])
    assert small["bf16 / bf16"] == {"requests": 0, "sparing": 0}
    assert small["int4 / fp8"]["sparing"] > small["int4 / fp8"]["requests"]
    order = [large[name]["requests"] for name in ("bf16 / bf16", "fp8 / bf16", "fp8 / fp8", "int4 / fp8")]
    assert order == sorted(order) and order[0] > 0
    assert result["needs"]["fp8 / fp8"]["weights"] / 2**30 == pytest.approx(9.78, abs=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| weights / cache | bf16 / bf16 |")
    assert lines[5].startswith("| 8 GiB | - | - |")
