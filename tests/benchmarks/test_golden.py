"""The command that asks the golden requests: equal answers pass, others are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import golden
from tests.golden_data import Case, load_engine


def test_equal_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "golden.json"
    few = ["--device", "cpu", "--checkpoint", "tiny-b", "--limit", "2", "--option", "max_batch_size=2"]
    assert golden.main([*few, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [(r["way"], r["wrong"], r["fault"]) for r in result["results"]] == [
        (way, "", "") for way in ("alone", "alone", "together", "together")
    ]
    assert "4 answers, 0 with faults" in capsys.readouterr().out


def test_other_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In float32 they are faults; in bfloat16, where the margin is small, they are only counted."""

    def other(case: Case, result: object) -> None:
        raise AssertionError(case["id"])

    monkeypatch.setattr(golden, "check", other)
    few = ["--device", "cpu", "--checkpoint", "tiny-b", "--limit", "1", "--dtype"]
    assert golden.main([*few, "float32"]) == 1
    assert "FAULT float32 alone tiny-b.caption_short.0: another answer" in capsys.readouterr().out
    assert golden.main([*few, "bfloat16"]) == 0
    assert "2 answers, 0 with faults" in capsys.readouterr().out


def test_a_failure_is_a_fault_in_every_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: Case, result: object) -> None:
        raise ValueError("no answer")

    monkeypatch.setattr(golden, "check", broken)
    few = ["--device", "cpu", "--checkpoint", "tiny-b", "--limit", "1", "--dtype", "bfloat16"]
    assert golden.main(few) == 1
    assert "FAULT bfloat16 together tiny-b.caption_short.0: ValueError: no answer" in capsys.readouterr().out


def test_an_engine_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(name: str, **options: Any) -> Any:
        if options["dtype"] == "bfloat16":
            raise MemoryError("no room")
        return load_engine(name, **options)

    monkeypatch.setattr(golden, "load_engine", failing)
    path = tmp_path / "golden.json"
    few = ["--device", "cpu", "--checkpoint", "tiny-b", "--limit", "1", "--dtype", "float32", "bfloat16"]
    assert golden.main([*few, "--json", str(path)]) == 1
    faults = [r["fault"] for r in json.loads(path.read_text())["results"]]
    assert faults == ["", "", "MemoryError: no room"]
    assert "FAULT bfloat16 none tiny-b: MemoryError: no room" in capsys.readouterr().out


def test_what_was_answered_is_kept_when_the_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = golden._answers

    def ended(name: str, dtype: str, options: Any) -> Any:
        if dtype == "bfloat16":
            raise KeyboardInterrupt
        return answers(name, dtype, options)

    monkeypatch.setattr(golden, "_answers", ended)
    path = tmp_path / "golden.json"
    few = ["--device", "cpu", "--checkpoint", "tiny-b", "--limit", "1", "--dtype", "float32", "bfloat16"]
    with pytest.raises(KeyboardInterrupt):
        golden.main([*few, "--json", str(path)])
    assert len(json.loads(path.read_text())["results"]) == 2
