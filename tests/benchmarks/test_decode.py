"""The decoding benchmark: its rival computes the same thing, and its report has every figure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import decode, prefill, subject, vision
from benchmarks.batch import Batch
from benchmarks.costs import Precision, decoding, text_step
from benchmarks.plain import PlainDecoder
from benchmarks.report import table
from benchmarks.sizes import SIZES
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
    assert all(r["floor_ms"] is None and len(r["repeats"]["decode_ms"]) == 1 for r in result["results"])
    one, two = result["spread"]
    assert one["experts"] == one["evenly"] == 2
    assert 2 <= two["experts"] <= 4 and two["evenly"] == pytest.approx(3.75)


def test_steps_as_on_a_gpu() -> None:
    """On fixed buffers, and each launched before the last is read: as many are timed."""
    size = ["--random", "20m", "--device", "cpu", "--prompt", "8", "--tokens", "3", "--rounds", "2", "--no-vision"]
    result = decode.main([*size, "--batch", "1", "2", "--graphs", "--ahead"])
    for record in result["results"]:
        assert record["decode_ms"] > 0 and len(record["repeats"]["decode_ms"]) == 2


def test_floors_are_those_of_the_rates_given(capsys: pytest.CaptureFixture[str]) -> None:
    size = [
        "--random",
        "20m",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--prompt",
        "8",
        "--tokens",
        "2",
        "--rounds",
        "1",
    ]
    result = decode.main([*size, "--batch", "1", "--no-vision", "--bandwidth", "0.001", "--bf16", "1"])
    cost = text_step(SIZES["20m"].text, decoding(1, 9), Precision(dtype="float32", experts="float32", kv="float32"))
    assert result["results"][0]["floor_ms"] == pytest.approx(sum(part.bytes for part in cost) / 1e9 * 1e3)
    assert "0.001 TB/s" in capsys.readouterr().out


def test_steps_read_late_sample_the_same() -> None:
    made = load("--random", "20m", "--device", "cpu", "--dtype", "float32").model
    sampled = []
    for ahead in (False, True):
        batch = Batch(made, 2, 6, 5, seed=3)
        for _ in range(4):
            batch.step_ahead() if ahead else batch.step()
        if ahead:
            assert len(batch._flights) == 1
            batch._land()
        sampled.append([[token.token for token in sequence.sampled] for sequence in batch._sequences])
    assert sampled[0] == sampled[1]
    assert [len(tokens) for tokens in sampled[0]] == [4, 4]


def test_a_picture_asked_again_is_found_in_the_cache() -> None:
    made = load("--random", "20m", "--device", "cpu").model
    batch = Batch(made, 2, 740, 2, image=True)
    batch.step()
    batch.again(740)
    plan = batch.plan()
    assert [(chunk.start, chunk.end) for chunk in plan.prefill] == [(730, 740)] * 2


def test_skewed_routers_touch_fewer_experts() -> None:
    spread = [
        decode.measure_spread(load("--random", "200m-64x8", "--device", "cpu", "--skew", skew), 8, "auto")
        for skew in ("0", "2")
    ]
    even, skewed = (one["experts"] for one in spread)
    assert even == pytest.approx(spread[0]["evenly"], rel=0.15)
    assert skewed < 0.8 * even


def load(*arguments: str) -> subject.Subject:
    parser = argparse.ArgumentParser()
    subject.add_options(parser, rounds=1)
    return subject.load("test", parser.parse_args(arguments), parser)


def test_vision_by_crops(tmp_path: Path) -> None:
    path = tmp_path / "vision.json"
    size = ["--random", "20m", "--device", "cpu", "--rounds", "1", "--chip", "L4"]
    vision.main([*size, "--crops", "2", "4", "--json", str(path)])
    few, many = json.loads(path.read_text())["results"]
    assert (few["crops"], many["crops"]) == (2, 4)
    assert 0 < few["floor_ms"] < many["floor_ms"] < 2 * few["floor_ms"]
    assert many["repeats"]["vision_ms"] == [many["vision_ms"]]
    assert [vision.tiling_of(n) for n in (2, 9, 13)] == [(1, 1), (2, 4), (3, 4)]


def test_vision_passes_as_on_a_gpu() -> None:
    [record] = vision.measure_vision(load("--random", "20m", "--device", "cpu"), [2], 2, 1, graphed=True)
    assert record["vision_ms"] > 0 and record["pictures"] == 2


def test_whole_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vision.json"
    size = ["--random", "20m", "--device", "cpu", "--rounds", "2", "--crops", "2"]
    vision.main([*size, "--whole", "850x600", "20x30", "--json", str(path)])
    large, small = json.loads(path.read_text())["cut"]
    assert (large["name"], large["crops"]) == ("850x600 to 9 crops", 9) and small["crops"] == 2
    assert large["cut_ms"] >= large["cut_best_ms"] == min(large["repeats"]["cut_ms"]) > 0
    assert "20x30 to 2 crops" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["850", "0x3", "3x-1", "1x15121", "axb", "1x2x3"])
def test_sizes_that_are_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vision.main(["--whole", size])
    assert "--whole" in capsys.readouterr().err


def test_prefill_by_length_and_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prefill.json"
    size = ["--random", "20m", "--device", "cpu", "--rounds", "1", "--chip", "L4"]
    prefill.main([*size, "--prompt", "20", "740", "--requests", "1", "2", "--json", str(path)])
    records = json.loads(path.read_text())["results"]
    found = [(r["requests"], r["prompt"], r["cached"]) for r in records]
    assert found == [(1, 20, 0), (2, 20, 0), (1, 740, 0), (1, 740, 730), (2, 740, 0), (2, 740, 730)]
    fresh, cached = records[2:4]
    assert cached["floor_ms"] < fresh["floor_ms"]
    assert "new tokens/s" in capsys.readouterr().out


def test_vision_is_measured_too() -> None:
    size = ["--random", "20m", "--device", "cpu", "--prompt", "4", "--tokens", "1", "--rounds", "1", "--batch", "1"]
    assert decode.main(size)["vision"]["crops"] == 9


def test_table() -> None:
    assert table(["name", "ms"], [["a", 1.0], ["long", 12.345]]) == (
        "name     ms\n----  -----\na      1.00\nlong  12.35"
    )
