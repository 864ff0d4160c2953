"""Tables, environments and summaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import report, summary


def test_numbers_stand_to_the_right_also_as_text() -> None:
    assert report.table(["name", "us"], [["a", "9.50"], ["b", "-"], ["c", "1.2e-3"]]) == (
        "name      us\n----  ------\na       9.50\nb          -\nc     1.2e-3"
    )


def test_the_commit_of_a_tree_without_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_git", lambda *arguments: None)
    monkeypatch.setenv("COMMIT", "abc")
    assert report.environment(torch.device("cpu"))["commit"] == "abc"


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = {"case": "k[1]", "fault": "", "ms": 2.0, "rivals": {"torch": 1.0}, "reached": False, "share": 0.4}
    results = {
        "check": {"benchmark": "check", "results": [{"case": "a", "fault": ""}, {"case": "b", "fault": "wrong"}]},
        "speed": {
            "benchmark": "speed",
            "results": [
                kernel | {"bar": 0.75, "of": "bytes"},
                {"case": "k[2]", "fault": "broken", "ms": None, "rivals": {}, "reached": None, "bar": 0.9},
            ],
        },
    }
    paths = [tmp_path / f"{name}.json" for name in results]
    for path in paths:
        path.write_text(json.dumps(results[path.stem]))
    assert summary.main([str(path) for path in paths]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "check: 1 of 2 cases within their bounds; not b",
        "speed: 0 of 2 bars reached; missed k[1] 40% < 75% of bytes; open k[2]; a library is faster at k[1]; "
        "failed k[2]",
    ]
