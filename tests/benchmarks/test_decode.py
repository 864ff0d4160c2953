"""The decoding benchmark: its rival computes the same thing, and its report has every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import decode
from benchmarks.plain import PlainDecoder
from benchmarks.report import table
from tests.golden_data import data, model, tensors


@pytest.mark.parametrize("name", ["tiny-a", "tiny-b"])
def test_the_plain_decoder_gives_the_golden_logits(name: str) -> None:
    """5e-4 is the golden data's own tolerance for logits."""
    built, info = model(name), data(name, "text")["txt"]
    plain = PlainDecoder(built.config, built.weights(), 64)
    logits = plain.forward(torch.tensor(info["prompt_ids"]))
    torch.testing.assert_close(logits, tensors(name, "text")["txt.logits.last"], atol=5e-4, rtol=0)
    for i, step in enumerate(info["decode"]):
        logits = plain.forward(torch.tensor([step["input_token"]]))
        torch.testing.assert_close(logits, tensors(name, "text")[f"txt.step{i}.logits"], atol=5e-4, rtol=0)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    size = ["--random", "20m", "--device", "cpu", "--prompt", "8", "--tokens", "2", "--rounds", "1"]
    decode.main([*size, "--batch", "1", "2", "--plain", "--no-vision", "--json", str(path)])
    printed = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert [r["name"] for r in result["results"]] == ["mdinfer, batch 1", "mdinfer, batch 2", "plain torch"]
    assert all(r["prefill_ms"] > 0 and r["decode_tokens_per_s"] > 0 for r in result["results"])
    assert result["environment"]["torch"] == torch.__version__
    assert "plain torch" in printed
    assert "vision" not in result


def test_vision_is_measured_too() -> None:
    size = ["--random", "20m", "--device", "cpu", "--prompt", "4", "--tokens", "1", "--rounds", "1", "--batch", "1"]
    assert decode.main(size)["vision"]["crops"] == 9


def test_table() -> None:
    assert table(["name", "ms"], [["a", 1.0], ["long", 12.345]]) == (
        "name     ms\n----  -----\na      1.00\nlong  12.35"
    )
