"""The engine's own benchmarks run what they say, and see what is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mdinfer
from benchmarks import soak, throughput
from benchmarks.load_mix import chart, endless, mixed_requests
from tests.golden_data import load_engine


def test_requests_are_of_all_kinds_and_the_same_for_the_same_seed() -> None:
    made = mixed_requests(32, 1, tokens=30)
    kinds = Counter(type(request).__name__ for request in made)
    assert kinds == {"Query": 24, "Caption": 4, "Detect": 4}
    pictures = {id(image) for request in made if (image := getattr(request, "image", None)) is not None}
    assert len(pictures) == round(16 / 1.66)
    assert chart(3).tobytes() == chart(3).tobytes() != chart(4).tobytes()
    again = [getattr(request, "question", "") for request in mixed_requests(32, 1, tokens=30)]
    assert again == [getattr(request, "question", "") for request in made]


def test_no_answer_ends_before_its_limit() -> None:
    with load_engine("tiny-a") as engine:
        endless(engine)
        requests = mixed_requests(8, 2, tokens=9, size=(64, 48))
        for request, result in zip(requests, engine.generate(requests), strict=True):
            assert result.finish_reason == "length"
            if isinstance(request, mdinfer.Detect):
                assert len(result.objects) == request.max_objects
            else:
                assert isinstance(request, mdinfer.Query | mdinfer.Caption)
                assert len(result.token_ids) == request.max_tokens


def test_throughput_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    size = ["--requests", "4", "--tokens", "3", "--pictures", "1", "--rounds", "1"]
    result = throughput.main(["--device", "cpu", *size, "--json", str(path)])
    assert json.loads(path.read_text()) == result
    one, together = result["load"]
    assert (one["way"], together["way"]) == ("one at a time", "together")
    assert result["ratio"] == together["requests_per_s"] / one["requests_per_s"]
    assert result["repeats"]["first_ttft_ms"] > 0
    assert result["stats"]["images_encoded"] > 2
    assert "together" in capsys.readouterr().out


def soaked(**options: Any) -> dict[str, Any]:
    arguments = {"minutes": 0.05, "every": 1, "clients": 3, "device": "cpu", **options}
    return soak.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])


def test_a_soak_loses_nothing() -> None:
    result = soaked()
    assert result["faults"] == []
    assert result["outcomes"]["finished"] > 0
    assert len(result["samples"]) >= 2


def test_a_soak_sees_lost_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    true = soak._idle

    def losing(engine: mdinfer.Engine) -> mdinfer.EngineStats:
        true(engine)
        scheduler = engine._loop._scheduler
        assert scheduler.cache is not None
        scheduler.cache.evict(scheduler.pages.count)
        assert scheduler.pages.take(2) is not None
        return engine.stats()

    monkeypatch.setattr(soak, "_idle", losing)
    assert soaked()["faults"] == ["2 pages are lost"]
