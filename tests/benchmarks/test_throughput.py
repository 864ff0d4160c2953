"""The engine's own benchmarks run what they say, and see what is lost."""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mdinfer
from benchmarks import soak, throughput
from benchmarks.charts import Item, drawn, from_folder
from benchmarks.load_mix import chart, endless, mixed_requests
from mdinfer.config import Template
from tests.golden_data import checkpoint, load_engine


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
    size = ["--load", "mixed", "--requests", "4", "--tokens", "3", "--pictures", "1", "--rounds", "1"]
    result = throughput.main(["--device", "cpu", *size, "--json", str(path)])
    assert json.loads(path.read_text()) == result
    one, together = result["load"]
    assert (one["way"], together["way"]) == ("one at a time", "together")
    assert result["ratio"] == together["requests_per_s"] / one["requests_per_s"]
    assert result["repeats"]["first_ttft_ms"] > 0
    assert result["stats"]["images_encoded"] > 2
    assert "together" in capsys.readouterr().out


def test_both_loads_are_run_unless_one_is_named() -> None:
    assert throughput._parse([])[0].load == ["mixed", "charts"]
    assert throughput._parse(["--until-done"])[0].load == ["charts"]


def test_drawn_questions_have_the_shape_of_chartqa() -> None:
    template = Template(prefix=(1, 15381, 2), suffix=(3,))
    items = drawn(50, 7, lambda text: len(text.split()), template)
    assert items == drawn(50, 7, lambda text: len(text.split()), template)
    pictures = Counter(item.picture for item in items)
    assert len(pictures) == round(50 / (2500 / 1509)) and set(pictures.values()) == {1, 2}
    assert not set(pictures) & {item.picture for item in drawn(50, 8, len, template)}
    assert {len(item.question.split()) for item in items} == {41}
    assert Image.open(io.BytesIO(items[0].picture)).size == (850, 600)
    assert [item.picture for item in items] != sorted((item.picture for item in items), key=hash)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a question a line"):
        from_folder(tmp_path)
    chart(1, (64, 48)).save(tmp_path / "one.PNG")
    chart(2, (64, 48)).save(tmp_path / "two.jpg")
    (tmp_path / "one.txt").write_text("What?\n\n Who? \n")
    items = from_folder(tmp_path)
    assert [item.question for item in items] == ["What?", "Who?"]
    assert items[0].picture == (tmp_path / "one.PNG").read_bytes()
    (tmp_path / "three.txt").write_text("Why?\n")
    with pytest.raises(ValueError, match=r"three\.txt has questions"):
        from_folder(tmp_path)


def test_charts_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    size = ["--load", "charts", "--clients", "1", "3", "--answers", "2", "--each", "2", "--least", "5", "--rounds", "2"]
    result = throughput.main(["--device", "cpu", *size, "--chip", "L4", "--json", str(path)])
    assert json.loads(path.read_text()) == result
    found = [(r["clients"], r["state"], r["requests"], len(r["repeats"]["p50_ms"])) for r in result["charts"]]
    assert found == [(1, "clean", 5, 2), (1, "again", 5, 2), (3, "clean", 6, 2), (3, "again", 6, 2)]
    clean, again, *_ = result["charts"]
    assert (clean["encoded"], again["encoded"]) == (3, 0)
    assert 0.1 < clean["found"] < 0.6 < 0.95 < again["found"]
    assert clean["p50_ms"] <= clean["p90_ms"] and clean["floor_per_s"] > clean["requests_per_s"]
    printed = capsys.readouterr().out
    assert "2 tokens" not in printed and "Kestrel" not in printed and "of prompts cached" in printed


def test_nothing_is_found_without_caches() -> None:
    size = ["--load", "charts", "--clients", "2", "--answers", "2", "--least", "5", "--rounds", "1", "--no-caches"]
    for record in throughput.main(["--device", "cpu", *size])["charts"]:
        assert (record["found"], record["encoded"]) == (0, record["requests"])


def test_answers_of_a_checkpoint_about_ones_own_pictures_end_by_themselves(tmp_path: Path) -> None:
    chart(1, (64, 48)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("What?\nWho?\n")
    size = ["--folder", str(tmp_path), "--until-done", "--clients", "2", "--rounds", "1", "--device", "cpu"]
    clean, again = throughput.main(["--checkpoint", str(checkpoint("tiny-a")), *size])["charts"]
    assert clean["requests"] == again["requests"] == 2
    assert (clean["encoded"], again["encoded"]) == (1, 0)
    assert clean["found"] < again["found"]
    assert clean["tokens_per_s"] > 0


def test_so_many_requests_are_under_way_and_the_first_fault_ends_all() -> None:
    items = drawn(6, 1, len, Template(prefix=(), suffix=()))
    with load_engine("tiny-a") as engine:
        run = throughput.ask(engine, items, 3, 1, "")
        assert len(run["ms"]) == 6 and run["tokens"] == 6
        # Of six requests three at a time, each waits for its own turn only: together they take less than one by one.
        assert sum(run["ms"]) / 1e3 > run["seconds"]
        with pytest.raises(mdinfer.MdinferError):
            throughput.ask(engine, [Item(picture=b"none", question="?"), *items], 2, 1, "")


def test_published_figures_stand_beside_the_same_chip_alone(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"answers": 3, "clients": 64, "state": "clean", "requests_per_s": 106.0, "p50_ms": 1.0, "p90_ms": 7.0}
    record |= {"found": 0.4, "encoded": 9, "floor_per_s": None}
    options = argparse.Namespace(folder=None)
    for device, told in (("NVIDIA H100 80GB HBM3", True), ("NVIDIA H100 PCIe", False), ("NVIDIA H200", False)):
        throughput._show({"environment": {"device": device}, "charts": [record]}, options)
        printed = capsys.readouterr().out
        assert ("What differs" in printed) == ("53.0" in printed) == ("371.4" in printed) == ("2.00" in printed) == told


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
