"""The report on experts in fewer bits: every figure is there, and more bits err less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import precision


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    sizes = ["--dim", "256", "--experts", "4", "--chosen", "2", "--inner", "128", "--rows", "8"]
    precision.main([*sizes, "--json", str(path)])
    printed, result = capsys.readouterr().out, json.loads(path.read_text())
    assert "student-t 4" in printed and "M weights/s" in printed
    by_draw = [[r for r in result["results"] if r["weights"] == draw] for draw in precision.DRAWS]
    for records in by_draw:
        assert [r["experts"] for r in records] == ["bf16", "fp8", "int8", "int4"]
        assert [r["bytes"] for r in records] == [2.0, *[pytest.approx(1.02, abs=0.02)] * 2, 0.531]
        for figure in ("weight_percent", "layer_percent", "logits_percent"):
            errors = [r[figure] for r in records]
            assert 0 < errors[0] < min(errors[1:3]) and max(errors[1:3]) < errors[3]
        assert 9 < records[3]["weight_percent"] < 16
