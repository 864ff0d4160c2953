"""Bands hold the median as surely as they say, and verdicts follow from bands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.compare import Figure, band, figures, verdict

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(("count", "least"), [(1, 0.0), (3, 0.75), (5, 0.93), (6, 0.95), (9, 0.95), (30, 0.95)])
def test_a_band_holds_the_true_median(count: int, least: float) -> None:
    """Of a skewed distribution with median 1; 4000 draws of a share p are within 5 sqrt(p (1 - p) / 4000) of it."""
    draws = np.random.default_rng(count).lognormal(0, 1, (4000, count))
    held = np.mean([low <= 1 <= high for low, high in map(band, draws.tolist())])
    assert held >= least - 5 * (0.25 / 4000) ** 0.5
    if count == 30:  # and it is no wider than it must be
        assert held < 0.99


def test_few_repeats_are_taken_whole_and_many_are_not() -> None:
    assert band([3.0]) == (3, 3)
    assert band([5.0, 1.0, 3.0]) == (1, 5)
    low, high = band([float(n) for n in range(30)])
    assert (low, high) == (9, 20)


@pytest.mark.parametrize(
    ("name", "new", "expected"),
    [
        ("decode_ms", (0.5, 0.8), "better"),
        ("decode_ms", (1.3, 1.4), "worse"),
        ("decode_ms", (1.1, 1.4), "within noise"),
        ("requests_per_s", (1.3, 1.4), "better"),
        ("requests_per_s", (0.5, 0.8), "worse"),
        ("requests_per_s", None, "no repeats"),
    ],
)
def test_verdicts(name: str, new: tuple[float, float] | None, expected: str) -> None:
    old = Figure(value=1, band=(0.9, 1.2))
    value = 1.0 if new is None else sum(new) / 2
    assert verdict(name, old, Figure(value=value, band=new)) == expected


def result(ms: float, **more: Any) -> dict[str, Any]:
    record = {"name": "a", "decode_ms": ms, "floor_ms": 1.0, "batch": 4, "repeats": {"decode_ms": [ms, ms * 1.01]}}
    return {"benchmark": "decode", "model": "m", "results": [record], "environment": {"device": "chip"}, **more}


def run(tmp_path: Path, old: dict[str, Any], new: dict[str, Any]) -> int:
    for name, content in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), "--json", str(tmp_path / "c.json")])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, result(2), result(1)) == 0
    assert "1 better, 0 worse, 0 within noise, 0 not in both" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["results"][0]["verdict"] == "better"
    assert run(tmp_path, result(1), result(2)) == 1
    assert run(tmp_path, result(1), result(1.005)) == 0
    assert "1 within noise" in capsys.readouterr().out


def test_what_is_not_alike_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, result(1), result(1, model="n", environment={"device": "other"}))
    printed = capsys.readouterr().out
    assert "DIFFERENT model: m and n" in printed
    assert "DIFFERENT device: chip and other" in printed


def test_records_of_one_file_alone_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = result(1)
    more["results"].append({"name": "b", "decode_ms": 3.0})
    run(tmp_path, result(1), more)
    assert "1 not in both" in capsys.readouterr().out


def test_files_of_different_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, result(1), result(1, benchmark="vision"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_of_before_can_be_read(path: Path) -> None:
    found = figures(json.loads(path.read_text()))
    assert all(figure.band is None or figure.band[0] <= figure.value <= figure.band[1] for figure in found.values())
