from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import full_size
from benchmarks.sizes import SIZES
from mdinfer.checkpoint import find_checkpoint
from mdinfer.model.moondream import Moondream


def test_what_is_written_is_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "_SHARD", 8 << 20)
    written = full_size.write_random(tmp_path, SIZES["20m"])
    found = find_checkpoint(tmp_path)
    assert (found.config, found.layout, found.precision) == (SIZES["20m"], "published", "bfloat16")
    assert found.nbytes == written and len(list(tmp_path.glob("*.safetensors"))) > 3
    model = Moondream(found.config, dtype=torch.bfloat16)
    found.load_into(model.weights(), progress=False)
    assert all(bool(values.isfinite().all()) and float(values.float().std()) > 0 for values in model.weights().values())


def test_starts_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """int4 cannot be had of a checkpoint that is not there: its record says so, and the other is measured."""
    path = tmp_path / "full.json"
    arguments = ["--random", "20m", "--directory", str(tmp_path), "--tokens", "2", "--json", str(path)]
    full_size.main([*arguments, "--experts", "int8"])
    [found] = json.loads(path.read_text())["results"]
    assert found["precision"] == "bfloat16, experts int8"
    assert 0 < found["load_s"] < found["ready_s"] < found["first_token_s"]
    assert found["weight_bytes"] < found["peak_bytes"] and found["tokens_per_s"] > 0
    assert list(tmp_path.iterdir()) == [path]
    assert "first token s" in capsys.readouterr().out


def test_a_load_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = full_size.main(["--checkpoint", str(tmp_path), "--experts", "bf16"])
    assert "ended with status" in result["results"][0]["error"]
    assert "bf16: ended with status" in capsys.readouterr().out
