from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import experts


def test_precisions_are_compared_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "experts.json"
    size = ["--random", "20m", "--prompt", "8", "--tokens", "2", "--rounds", "2", "--batch", "1", "2"]
    experts.main([*size, "--experts", "bf16", "int8", "int4", "--json", str(path)])
    result = json.loads(path.read_text())
    assert [(r["batch"], r["name"]) for r in result["results"]] == [
        (size, name) for size in (1, 2) for name in ("bf16", "int8", "int4")
    ]
    for record in result["results"]:
        assert record["decode_ms"] > 0 and record["decode_ratio"] > 0 and record["prefill_ratio"] > 0
        assert record["name"] != "bf16" or record["decode_ratio"] == record["prefill_ratio"] == 1
    sizes = [result["models"][name]["bytes"] for name in ("bf16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert "experts int8" in capsys.readouterr().out


def test_a_ratio_is_of_rounds_side_by_side() -> None:
    """A round that is slow for both says nothing about either."""
    assert experts._ratio([2.0, 200.0, 2.0], [1.0, 100.0, 1.0]) == 2.0


def test_what_cannot_be_measured_is_refused() -> None:
    for wrong in (["--tokens", "0"], ["--prompt", "1"], ["--experts", "auto"]):
        with pytest.raises(SystemExit):
            experts.main(["--random", "20m", *wrong])
