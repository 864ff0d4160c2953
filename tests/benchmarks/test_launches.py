"""Steps are counted as they run: their bytes are the floor's, and what is done twice is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import launches
from benchmarks.host import host_times
from benchmarks.sizes import SIZES
from mdinfer.model.text import TextDecoder

# Two layers of each kind at the published widths, through the command's own door for a checkpoint's sizes.
SMALL = {"text": {"n_layers": 4, "moe": {"start_layer": 2}}, "vision": {"enc_n_layers": 2}}


def counted(tmp_path: Path, *arguments: str) -> tuple[int, Any]:
    sizes, path = tmp_path / "config.json", tmp_path / "out.json"
    sizes.write_text(json.dumps(SMALL))
    code = launches.main(["--checkpoint", str(sizes), "--steps", "8", "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


@pytest.mark.parametrize(("precision", "linears"), [("bf16", "bf16"), ("fp8", "bf16"), ("fp8", "fp8")])
def test_bytes_are_the_floors(precision: str, linears: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("--experts", precision, "--linears", linears, "--kv", precision)
    code, result = counted(tmp_path, *kept, "--batch", "1", "64")
    assert code == 0
    one, many, fresh, resumed, vision = result["results"]
    for record in (one, many):
        assert record["of_floor"] == pytest.approx(1, abs=1e-4)
        assert record["copies"] == [1, 1]
    for record in (fresh, vision):
        assert record["of_floor"] == pytest.approx(1, abs=1e-3)
    page = 2 * 32 / 730 * result["results"][3]["cache_bytes"]  # that is copied on write is no part of the floor
    assert 1 < resumed["of_floor"] < 1 + 1.1 * page / resumed["floor_bytes"] + 1e-3
    assert vision["products"] == 4 * 2 + 3
    linears_of_fp8 = 2 * 4 + 2 * 2 if linears == "fp8" else 0  # attention in four layers, and two dense layers
    assert one["by_name"].get("few_rows_kernel", 0) == linears_of_fp8
    for record in (many, fresh, resumed):
        rounded = sum(record["by_name"].get(f"{name}_rows_kernel", 0) for name in ("quantise", "bias_gelu"))
        assert record["by_name"].get("_scaled_mm.default", 0) == rounded == linears_of_fp8
        assert record["products"] == many["products"]
    assert vision["by_name"].get("layer_norm_rows_kernel", 0) == (4 if linears == "fp8" else 0)
    assert one["by_name"]["decode_attention_kernel"] == 4
    assert one["by_name"]["small_fc1_kernel"] == many["by_name"]["grouped_fc1_kernel"] == 2
    dense, sparse = one["layers"]
    assert one["starts"] > 2 * dense + 2 * sparse - 2 > 20
    assert "decode, batch 64" in capsys.readouterr().out


def test_weights_read_twice_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = TextDecoder.logits

    def twice(self: TextDecoder, hidden: torch.Tensor, first: int | None = None) -> torch.Tensor:
        once(self, hidden, first)
        return once(self, hidden, first)

    monkeypatch.setattr(TextDecoder, "logits", twice)
    code, result = counted(tmp_path, "--batch", "1")
    assert code == 1
    assert result["results"][0]["of_floor"] > 1.05
    assert "OFF the floor's bytes: decode, batch 1" in capsys.readouterr().out


def test_host_time_is_of_each_part() -> None:
    found = host_times(SIZES["20m"], 3, 40, 10)
    parts = [found[name] for name in ("plan", "pack", "read", "commit")]
    assert min(parts) > 0 and found["all"] == sum(parts)
